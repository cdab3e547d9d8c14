"""Wrong answers of a runtime: an artifact's outputs are changed before verification reads them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from md_export.errors import ArtifactError, GoldenError, MdExportError, RecipeError, RuntimeFault
from md_export.parity.golden.folder import read_golden
from md_export.parity.judge import Execute, judge, taking
from md_export.parity.metrics import Check, Fault
from md_export.parity.opened_export import check_belongs
from md_export.parity.selftest.sandbox import NotApplicable
from md_export.spec.artifact import GOLDEN_FOLDER, sha256_of_artifact
from md_export.spec.manifest import read_manifest
from md_export.spec.tensors import Array, Arrays, Runner, WatchedRunner
from md_export.targets import TARGETS
from md_export.targets import execution as executing
from md_export.targets.contract import Description
from md_export.targets.execution import Execution

# Takes a runtime and returns one with wrong outputs.
Distortion = Callable[[Execute], Execute]


def on_outputs(change: Callable[[list[dict[str, Array]]], list[dict[str, Array]]]) -> Distortion:
    """Return a distortion that passes the outputs of all runs through ``change``."""

    def distort(execute: Execute) -> Execute:
        def run(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
            made = execute(target, path, batches)
            return dataclasses.replace(made, outputs=change(made.outputs))

        return run

    return distort


def each_output(change: Callable[[Array], Array]) -> Distortion:
    """Return a distortion that passes every output through ``change``."""
    return on_outputs(lambda made: [{name: change(value) for name, value in item.items()} for item in made])


def exchanged(made: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Exchange the outputs of the first and the second prompt, and so on."""
    return [made[place] for place in _pairs(len(made))]


def inputs_exchanged(execute: Execute) -> Execute:
    """Exchange the first input between the two runs of each pair; other inputs stay."""

    def run(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        first = next(iter(batches[0]))
        mixed = [{**batches[i], first: batches[j][first]} for i, j in enumerate(_pairs(len(batches)))]
        return execute(target, path, mixed)

    return run


def _pairs(count: int) -> list[int]:
    """Return 1, 0, 3, 2, …: the partner of each run."""
    if count < 2:
        raise NotApplicable("one golden prompt has no other to exchange with")
    return [place ^ 1 if place ^ 1 < count else place for place in range(count)]


def one_value(wrong: float) -> Callable[[Array], Array]:
    """Return a change that replaces the value in the middle by ``wrong``."""

    def change(value: Array) -> Array:
        changed = value.copy()
        changed.reshape(-1)[changed.size // 2] = wrong
        return changed

    return change


def without_guidance(value: Array) -> Array:
    """Replace both halves of a guided output by their mean: a small error in each, but the prompt has no effect."""
    if value.shape[0] != 2:
        raise NotApplicable("it is made without guidance")
    return np.repeat(value.mean(axis=0, keepdims=True), 2, axis=0)


def transposed(value: Array) -> Array:
    """Transpose the last two axes, which keeps the shape."""
    if value.shape[-1] != value.shape[-2]:
        raise NotApplicable(f"an output of shape {list(value.shape)} has no two axes of one size")
    return np.ascontiguousarray(value.swapaxes(-1, -2))


def channels_last(value: Array) -> Array:
    """Move channels last: ``[N, C, H, W]`` → ``[N, H, W, C]``, and similarly for fewer axes."""
    return np.ascontiguousarray(np.moveaxis(value, 1, -1))


def broadcastable(value: Array) -> Array:
    """Return one row, which numpy would silently broadcast in a comparison."""
    return np.ascontiguousarray(value[..., :1])


# Number of loaded artifacts: those of an export, and a damaged one.
_RUNNERS: Final = 3


class Bench:
    """Runs artifacts in this process; the same bytes on the same inputs run once."""

    def __init__(self) -> None:
        self._runners: OrderedDict[str, Runner] = OrderedDict()
        self._answers: dict[tuple[str, str], tuple[dict[str, Array], tuple[str, ...]]] = {}
        self._apart: dict[tuple[str, str], Execution | RuntimeFault] = {}
        self._found: dict[str, Description] = {}

    def execute(self, target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        """Execute in this process; otherwise like :func:`md_export.targets.execution.execute`."""
        content = sha256_of_artifact(path)
        made = [self._run(target, path, content, batch) for batch in batches]
        if content not in self._found:
            self._found[content] = TARGETS[target].open().describe(path)
        hazards = dict.fromkeys(line for _, lines in made for line in lines)
        return Execution([outputs for outputs, _ in made], self._found[content], tuple(hazards))

    def execute_apart(self, target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        """Execute in a separate process, because these bytes may crash a runtime; failures are cached, too."""
        key = sha256_of_artifact(path), ",".join(map(_digest, batches))
        if key not in self._apart:
            try:
                self._apart[key] = executing.execute(target, path, batches)
            except RuntimeFault as error:
                self._apart[key] = error
        ended = self._apart[key]
        if isinstance(ended, RuntimeFault):
            raise ended
        return ended

    def _run(self, target: str, path: Path, content: str, batch: Arrays) -> tuple[dict[str, Array], tuple[str, ...]]:
        key = content, _digest(batch)
        if key not in self._answers:
            runner = self._runners.pop(content, None) or TARGETS[target].open().load(path)
            outputs = runner.run(batch)
            hazards = runner.hazards() if isinstance(runner, WatchedRunner) else ()
            # A watched runner keeps the hazards of earlier runs, which must not be reported for the next run.
            if not hazards and all(np.isfinite(value).all() for value in outputs.values()):
                self._runners[content] = runner
            while len(self._runners) > _RUNNERS:
                self._runners.popitem(last=False)
            self._answers[key] = outputs, hazards
        return self._answers[key]


def _digest(batch: Arrays) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(batch.items()):
        digest.update(f"{name} {value.dtype} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def by_name(file: str, special: Execute, execute: Execute) -> Execute:
    """Return a runtime that executes the artifact called ``file`` by ``special`` and the others by ``execute``."""

    def run(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        return (special if path.name == file else execute)(target, path, batches)

    return run


def examine(out: Path, execute: Execute, audit: Callable[[], Sequence[Fault]]) -> tuple[Fault, ...]:
    """Return all faults that verification and the audit of the damaged component find."""
    try:
        manifest = read_manifest(out)
    except (ArtifactError, RecipeError) as error:
        return (Fault(Check.MANIFEST, str(error)),)
    try:
        golden = read_golden(out / GOLDEN_FOLDER)
    except GoldenError as error:
        return (Fault(Check.GOLDEN, str(error)),)
    try:
        check_belongs(manifest, golden, own=True)
    except GoldenError as error:
        return (Fault(Check.BELONGING, str(error)),)
    return (*judge(out, execute=execute, take=taking(execute)).result.faults, *_audited(audit))


def _audited(audit: Callable[[], Sequence[Fault]]) -> Sequence[Fault]:
    try:
        return audit()
    except MdExportError as error:
        return [Fault(Check.AUDIT, str(error))]
