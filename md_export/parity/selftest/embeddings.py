"""Damage to the stored text embeddings of an export."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from md_export.models.families import family_named
from md_export.models.prompts import StoredPrompts, read_prompts, tokenized, write_prompts
from md_export.parity.golden.surface import packed, unpacked
from md_export.parity.selftest.sandbox import NotApplicable, Sandbox
from md_export.parity.subject import most_snr_db
from md_export.spec.prompts import PROMPTS_FILE
from md_export.spec.tensors import Array


def _edit(sandbox: Sandbox, change: Callable[[StoredPrompts], StoredPrompts], least: int = 1) -> None:
    """Write changed embeddings; ``least``: number of prompts that the change needs."""
    if len(sandbox.manifest.stored_prompts) < least:
        raise NotApplicable(f"it stores fewer than {least} prompts")
    changed = change(read_prompts(sandbox.folder))
    (sandbox.folder / PROMPTS_FILE).unlink()  # a link to other copies
    write_prompts(changed)


def _rows(stored: StoredPrompts, change: Callable[[Array], Array]) -> dict[str, Array]:
    return {key: change(value) for key, value in stored.values.items()}


def exchange_rows(sandbox: Sandbox) -> None:
    """Exchange the embeddings of the last two prompts."""
    _edit(
        sandbox,
        lambda stored: dataclasses.replace(
            stored, values=_rows(stored, lambda value: np.concatenate([value[:-2], value[:-3:-1]]))
        ),
        least=2,
    )


def change_value(sandbox: Sandbox) -> None:
    """Change one value of the last prompt's embedding by half of the largest magnitude."""

    def changed(value: Array) -> Array:
        other = value.copy()
        other.reshape(-1)[-1] += np.abs(value).max() / 2
        return other

    _edit(sandbox, lambda stored: dataclasses.replace(stored, values=_rows(stored, changed)))


def _without_last(stored: StoredPrompts) -> StoredPrompts:
    return StoredPrompts(stored.prompts[:-1], _rows(stored, lambda value: value[:-1]), stored.where)


def remove_prompt(sandbox: Sandbox) -> None:
    """Remove the last prompt and its embedding from the file."""
    _edit(sandbox, _without_last, least=2)


def add_prompt(sandbox: Sandbox) -> None:
    """Add a prompt with the embedding of the last one."""

    def change(stored: StoredPrompts) -> StoredPrompts:
        values = _rows(stored, lambda value: np.concatenate([value, value[-1:]]))
        return StoredPrompts((*stored.prompts, f"{stored.prompts[-1]}, again"), values, stored.where)

    _edit(sandbox, change)


def remove_everywhere(sandbox: Sandbox) -> None:
    """Remove the last prompt from the file and from the recipe."""
    _edit(sandbox, _without_last, least=2)
    sandbox.edit_manifest(lambda manifest: manifest["recipe"]["prompts"]["stored"].pop())


def taken_from_artifact(sandbox: Sandbox) -> None:
    """Take the embeddings from the text encoder's artifact, so that its losses are in the file, too."""
    manifest, entry = sandbox.manifest, sandbox.entry
    family, recipe = family_named(manifest.family), manifest.recipe
    row = family[sandbox.component]
    if not manifest.stored_prompts or row.called != "per prompt":
        raise NotApplicable("it stores no prompts, or has no text encoder")
    if math.isinf(most_snr_db(recipe.schemes[sandbox.component])):
        raise NotApplicable("its scheme may be exact")
    runner, folders = sandbox.target.load(sandbox.artifact()), {name: sandbox.folder / name for name in family.tokens}

    def change(stored: StoredPrompts) -> StoredPrompts:
        given = [row.read(tokenized(family, folders, one, stored.length)) for one in stored.prompts]
        made = [unpacked(recipe, entry, runner.run(packed(recipe, entry, one))) for one in given]
        taken = {f"{row.name}.{name}": np.concatenate([one[name] for one in made]) for name in made[0]}
        return dataclasses.replace(stored, values={**stored.values, **taken})

    _edit(sandbox, change)
