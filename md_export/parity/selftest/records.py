"""Damage to what lies beside the artifacts: golden files, their index, the tokenizer and the manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from md_export.models.families import family_named
from md_export.models.values import LAST, MADE
from md_export.models.walk import picture_from
from md_export.parity.golden.surface import inputs_of
from md_export.parity.selftest.damage import flip_block
from md_export.parity.selftest.sandbox import Change, NotApplicable, Sandbox, edit_json, make_own
from md_export.spec.tensors import only_output, save_tensors

# Files of a tokenizer that hold a vocabulary.
_TABLES: Final = ("vocab.json", "tokenizer.json")


def stale_golden(sandbox: Sandbox) -> None:
    """The first golden file holds what another checkpoint might have given for its prompt."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    # What components gave; the others are what they take.
    made = (*(f"{row}." for row in family_named(sandbox.manifest.family).rows), LAST.key, MADE.key)
    save_tensors({name: value[..., ::-1] if name.startswith(made) else value for name, value in arrays.items()}, path)


def nan_in_golden(sandbox: Sandbox) -> None:
    """One NaN in the first golden file."""
    path = sandbox.golden_file()
    arrays = load_file(path)
    arrays[LAST.key].reshape(-1)[0] = np.nan
    save_tensors(arrays, path)


def recorded_from_broken(sandbox: Sandbox) -> None:
    """One block of a weight flipped, and the golden outputs taken from that artifact: all that runs, agrees."""
    image_of = family_named(sandbox.manifest.family).image
    if sandbox.component != image_of.node:
        raise NotApplicable("the export has no decoder, whose output no other component takes")
    flip_block(sandbox)
    recipe, runner = sandbox.manifest.recipe, sandbox.target.load(sandbox.artifact())
    for case, item in zip(sandbox.golden.cases, sandbox.golden.index.cases, strict=True):
        image = only_output(runner.run(inputs_of(recipe, sandbox.entry, case)))
        path = sandbox.folder / sandbox.golden.folder.name / item.file
        make_own(path)
        save_tensors({**load_file(path), image_of.key: image, MADE.key: picture_from(image)}, path)


def exchange_words(sandbox: Sandbox) -> None:
    """Two words of a golden prompt get each other's id in the tokenizer."""
    value = next(iter(family_named(sandbox.manifest.family).tokens.values()))
    held = sandbox.golden.cases[0].values
    ids = next(held[key] for key in (value.key, f"{value.key}.1") if key in held)[0].tolist()
    tables = [path for name in _TABLES if (path := sandbox.folder / "tokenizer" / name).is_file()]
    if not tables:
        raise NotApplicable("it has no tokenizer")
    for path in tables:
        edit_json(path, lambda content: _exchange(content.get("model", {}).get("vocab", content), ids))


def _exchange(vocabulary: Any, ids: Sequence[int]) -> None:
    if not isinstance(vocabulary, dict):
        raise NotApplicable("its tokenizer has no table of words")
    by_id = {number: word for word, number in vocabulary.items()}
    first, second = [by_id[number] for number in dict.fromkeys(ids) if by_id.get(number, "<").endswith("</w>")][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def index(change: Change) -> Callable[[Sandbox], None]:
    """Edit the golden index."""
    return lambda sandbox: sandbox.edit_index(change)


def manifest(change: Change) -> Callable[[Sandbox], None]:
    """Edit the manifest."""
    return lambda sandbox: sandbox.edit_manifest(change)


def entry(change: Change) -> Callable[[Sandbox], None]:
    """Edit the component's entry in the manifest."""
    return lambda sandbox: sandbox.edit_entry(change)


def index_and_manifest(change: Change) -> Callable[[Sandbox], None]:
    """Edit the golden index and the manifest, which then agree on what is not the artifacts'."""

    def damage(sandbox: Sandbox) -> None:
        sandbox.edit_index(change)
        sandbox.edit_manifest(change)

    return damage


def other_hash(field: str) -> Change:
    """Replace a hash of an index, a manifest or an entry."""
    return lambda values: values.update({field: "0" * 64})


def negate_step(values: dict[str, Any]) -> None:
    """x0 = a·noise − b·output, in an index or a manifest; of many steps, each."""
    for step in (values["one_step"], *(values.get("steps") or {"steps": ()})["steps"]):
        step["b"] *= -1


def drop_threshold(values: dict[str, Any]) -> None:
    """A threshold that everything meets, in a manifest."""
    values["recipe"]["picture_psnr_db"] = -math.inf


def exchange_shapes(values: dict[str, Any]) -> None:
    """The first and the last input under each other's name."""
    specs = values["inputs"]
    if len(specs) < 2:
        specs[0]["shape"] = specs[0]["shape"][::-1]
    else:
        specs[0]["name"], specs[-1]["name"] = specs[-1]["name"], specs[0]["name"]


def shrink_output(values: dict[str, Any]) -> None:
    """An output of one row, to which the true one could be broadcast."""
    values["outputs"][0]["shape"][-1] = 1


def other_weights(values: dict[str, Any]) -> None:
    """A type that the artifact's weights were not stored in."""
    values["weights"] = "int8" if values["weights"] == "int4" else "int4"


def claim_int8(sandbox: Sandbox) -> None:
    """Float weights as int8 ones, in the manifest and in its recipe."""
    component, weights = sandbox.component, sandbox.entry.weights
    if not weights.startswith("float"):
        raise NotApplicable(f"its weights are {weights}, no float ones")
    sandbox.edit_entry(lambda values: values.update(weights="int8"))
    sandbox.edit_manifest(lambda values: values["recipe"]["schemes"][component].update(weights="int8"))
