"""Check the stored text embeddings of an export: against its manifest, tokenizer and golden cases, its text encoders,
and torch.

Torch computes the embeddings in float32, whatever the precision of the text encoders' artifacts is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from md_export.checkpoint import Checkpoint
from md_export.errors import ArtifactError, CheckpointError, UsageError
from md_export.models.families import family_named
from md_export.models.graph import Family
from md_export.models.prompts import (
    StoredPrompts,
    read_prompts,
    text_encoders,
    tokenized,
    values_of_prompt,
    write_prompts,
)
from md_export.models.values import ATTENTION_MASK, INPUT_IDS
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.prepare import golden_source
from md_export.parity.golden.recomputed import ALONE_DB
from md_export.parity.golden.surface import packed, unpacked
from md_export.parity.metrics import Check, Fault, Finding, compare, first_fault, snr_db, worst
from md_export.parity.opened_export import OpenedExport
from md_export.parity.subject import Subject, shortfalls
from md_export.spec.artifact import shape_of_input
from md_export.spec.manifest import Manifest
from md_export.spec.prompts import PROMPTS_FILE
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import Array, Arrays

_AGAIN: Final = "it was edited, export again"
_SHOWN: Final = 60


def embeddings(checkpoint: Checkpoint, recipe: Recipe, prompts: Sequence[str]) -> dict[str, Array]:
    """Return what torch computes of each prompt, float32 ``[N, …]`` by key; ``checkpoint``: of the recipe's variant.

    Raises:
        RewriteError: a rewrite is refused.
    """
    source = golden_source(checkpoint, recipe.rewrites, recipe.allow_drift, recipe.sampler)
    return source.pipeline.embedded(prompts)


def store_prompts(checkpoint: Checkpoint, recipe: Recipe, prompts: Sequence[str], folder: Path) -> None:
    """Write ``prompts.safetensors`` to ``folder``; arguments and errors as for :func:`embeddings`."""
    write_prompts(StoredPrompts(tuple(prompts), embeddings(checkpoint, recipe, prompts), folder))


def prompt_faults(export: OpenedExport) -> list[Fault]:
    """Return the faults of the stored embeddings that can be found without text encoders."""
    wanted = export.manifest.stored_prompts
    if not wanted:
        return []
    try:
        stored = read_prompts(export.out)
        lines = [*_text_lines(stored.prompts, wanted)] or [*_value_lines(export, stored)]
    except (ArtifactError, CheckpointError, UsageError) as error:
        lines = [str(error)]
    return [Fault(Check.PROMPTS, line) for line in lines]


def _text_lines(held: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    lacking, more = [one for one in wanted if one not in held], [one for one in held if one not in wanted]
    if lacking:
        yield f"{PROMPTS_FILE} lacks {_names(lacking)}, which the recipe stores; {_AGAIN}"
    if more:
        yield f"{PROMPTS_FILE} has {_names(more)}, which the recipe does not store; {_AGAIN}"
    if not lacking and not more and [*held] != [*wanted]:
        yield f"{PROMPTS_FILE} has its prompts in another order than the recipe, or one twice; {_AGAIN}"


def _names(prompts: Sequence[str]) -> str:
    more = f" and {len(prompts) - 1} more" if prompts[1:] else ""
    return f"the prompt {prompts[0]!r:.{_SHOWN}}{more}"


def _value_lines(export: OpenedExport, stored: StoredPrompts) -> Iterator[str]:
    """Yield a line for each tensor that cannot be right, and for each golden prompt with other golden values."""
    family, first = family_named(export.manifest.family), export.golden.cases[0]
    wanted = values_of_prompt(family)
    if stored.values.keys() != wanted.keys():
        yield f"{PROMPTS_FILE} has {', '.join(stored.values)}, not {', '.join(wanted)}; {_AGAIN}"
        return
    for key, value in stored.values.items():
        golden = first.values[next(name for name in (key, f"{key}.1") if name in first.values)]
        zeros = np.zeros((len(stored.prompts), *golden.shape[1:]), golden.dtype)
        if fault := first_fault(value, zeros):
            yield f"{PROMPTS_FILE}: {key}: {fault}; {_AGAIN}"
            return
    if ATTENTION_MASK.key in wanted:
        yield from _mask_lines(export, family, stored)
    # A style may change the text encoder; the embeddings are those without a style.
    for case in (one for one in export.golden.cases if one.style is None):
        yield from _golden_lines(export.manifest, case, stored)


def _mask_lines(export: OpenedExport, family: Family, stored: StoredPrompts) -> Iterator[str]:
    folders = {name: export.out / name for name in family.tokens}
    for prompt in stored.prompts:
        wanted = tokenized(family, folders, prompt, stored.length)[ATTENTION_MASK.key]
        if not np.array_equal(stored.of(prompt)[ATTENTION_MASK.key], wanted):
            yield f"{PROMPTS_FILE}: the mask of the prompt {prompt!r:.{_SHOWN}} is not the tokenizer's; {_AGAIN}"


def _golden_lines(manifest: Manifest, case: GoldenCase, stored: StoredPrompts) -> Iterator[str]:
    negative = (manifest.steps.negative if manifest.steps else None) or ""
    for ending, prompt in (("", case.prompt), (".0", negative), (".1", case.prompt)):
        if prompt in stored.prompts:
            wanted = {key: case.values[f"{key}{ending}"] for key in stored.values if f"{key}{ending}" in case.values}
            yield from _differing(stored, {prompt: wanted}, f"its golden value in {case.name}")


def _differing(stored: StoredPrompts, wanted: Mapping[str, Arrays], what: str) -> Iterator[str]:
    """Yield a line for each tensor of a prompt in ``wanted`` that differs by more than rounding."""
    for prompt, values in wanted.items():
        for key, value in stored.of(prompt).items():
            if key not in values:
                continue
            db = -np.inf if first_fault(value, values[key]) else snr_db(value, values[key])
            if not db >= ALONE_DB:
                yield (
                    f"{PROMPTS_FILE}: {key} of the prompt {prompt!r:.{_SHOWN}} is {db:.1f} dB from {what}, and "
                    f"rounding leaves {ALONE_DB:g} dB; {_AGAIN}"
                )


def stored_batches(subject: Subject) -> dict[str, dict[str, Array]]:
    """Return the inputs of a text encoder's artifact for each stored prompt; none for another component.

    Also none if the embeddings or the tokenizer cannot be read: :func:`prompt_faults` and the check of the tokenizer
    report that.
    """
    export, entry = subject.export, subject.entry
    family = family_named(export.manifest.family)
    row, length = family[entry.component], shape_of_input([entry], INPUT_IDS.name)
    if row not in text_encoders(family) or length is None or not export.manifest.stored_prompts:
        return {}
    folders = {name: export.out / name for name in family.tokens}
    try:
        found = {one: tokenized(family, folders, one, length[-1]) for one in read_prompts(export.out).prompts}
    except (ArtifactError, CheckpointError):
        return {}
    return {one: packed(export.manifest.recipe, entry, row.read(values)) for one, values in found.items()}


def artifact_faults(subject: Subject, prompts: Iterable[str], outputs: Sequence[Arrays]) -> list[Fault]:
    """Return a fault if a stored prompt is further from the artifact's outputs than the component's tolerance.

    Args:
        prompts: in the order of :func:`stored_batches`.
        outputs: of the artifact for each of them.

    Raises:
        ArtifactError: the manifest names other outputs than the artifact has.
    """
    if not outputs:
        return []
    export, name = subject.export, subject.entry.component
    stored, found = read_prompts(export.out), dict[str, str]()
    for prompt, made in zip(prompts, outputs, strict=True):
        held, got = stored.of(prompt), unpacked(export.manifest.recipe, subject.entry, made)
        pairs = [(value, held[f"{name}.{key}"]) for key, value in got.items() if f"{name}.{key}" in held]
        faults = [fault for pair in pairs if (fault := first_fault(*pair))]
        faults = faults or shortfalls(worst([compare(*pair) for pair in pairs]), subject.tolerance) if pairs else []
        if faults:
            found[prompt] = str(faults[0])
    if not found:
        return []
    first, more = next(iter(found)), f" (and of {len(found) - 1} more)" if len(found) > 1 else ""
    text = (
        f"the artifact's outputs differ from the stored embeddings of the prompt {first!r:.{_SHOWN}}{more}: "
        f"{found[first]}; if {PROMPTS_FILE} was not edited, the artifact is too inexact for this prompt: take a finer "
        "scheme, or leave out the text encoder"
    )
    return [Fault(Check.PROMPTS, text)]


def torch_findings(out: Path, manifest: Manifest, made: Arrays) -> Iterator[Finding]:
    """Yield a finding for each stored prompt that differs from torch's result for the checkpoint.

    ``made``: :func:`embeddings` of the manifest's stored prompts.
    """
    try:
        stored = read_prompts(out)
    except ArtifactError as error:
        yield Finding("", Check.PROMPTS, str(error))
        return
    prompts = manifest.stored_prompts
    wanted = {one: {key: value[row : row + 1] for key, value in made.items()} for row, one in enumerate(prompts)}
    wanted = {one: values for one, values in wanted.items() if one in stored.prompts}
    for line in _differing(stored, wanted, "what torch computes of the checkpoint"):
        yield Finding("", Check.PROMPTS, line)
