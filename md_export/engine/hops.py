"""From checkpoint to runtime in hops: which stage loses what an artifact lacks?

    checkpoint → rewritten torch module → lowered to float32 → stored as the recipe asks → executed by the runtime

Each hop is judged by its own output against the golden one, which torch computed from the checkpoint.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.checkpoint import open_checkpoint
from md_export.engine.artifact import BuildStep, build_component
from md_export.errors import ConversionError, MdExportError
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import read_golden
from md_export.parity.golden.surface import golden_cases
from md_export.parity.metrics import EXACT_DB, Check, Fault, snr_db
from md_export.parity.opened_export import check_checkpoint, open_export
from md_export.parity.rewritten_module import Rewritten, rewritten
from md_export.parity.verdict import Verdict
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.recipe import QuantScheme, Recipe
from md_export.spec.tensors import joined
from md_export.system.isolation import isolated
from md_export.targets import TARGETS
from md_export.targets.contract import RunsAsWritten
from md_export.targets.execution import execute

Progress = Callable[[str], None]
# What such a failure says lies in the numbers, which a hop can explain.
_NUMBERS: Final = (Check.FIGURES, Check.FINITE)
_FLOAT32: Final = QuantScheme("float32", "float32")


@dataclass(frozen=True)
class Hop:
    """One stage's output against the golden one, the worst case of those that were run.

    Attributes:
        name: ``rewritten``, ``lowered``, ``quantized`` or ``runtime``.
        what: the stage in words.
        least_snr_db: what the recipe asks of the component.
        failure: why there is no output; the SNR is :data:`EXACT_DB` below zero then.
    """

    name: str
    what: str
    snr_db: float
    least_snr_db: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the stage still meets the recipe; a NaN does not."""
        return self.snr_db >= self.least_snr_db

    def __str__(self) -> str:
        figure = "exact" if self.snr_db >= EXACT_DB else f"{self.snr_db:.1f} dB"
        return f"{self.what}: {self.failure or figure}"


def failing_hop(hops: Sequence[Hop]) -> Hop | None:
    """The first that falls short."""
    return next((hop for hop in hops if not hop.passed), None)


def explain(out: Path, result: Verdict, checkpoint_dir: Path, progress: Progress) -> list[str]:
    """For each component whose numbers fall short a line that names the hop at which they do.

    Costs a conversion to float32 for each of them, unless its rewritten module is wrong already.
    """
    manifest, golden = read_manifest(out), read_golden(out / GOLDEN_FOLDER)
    short = {item.component for item in result.components if _in_numbers(item.faults)}
    lines = []
    for entry in manifest.artifacts:
        if entry.component in short:
            progress(f"{entry.component} falls short: at which hop?")
            lines.append(f"{entry.component}: {verdict(measure(out, manifest, entry, golden.cases, checkpoint_dir))}")
    return lines


def verdict(hops: Sequence[Hop]) -> str:
    """The failing hop first, then the figures of those before it."""
    failing = failing_hop(hops)
    if failing is None:
        return f"no hop falls short in SNR ({'; '.join(map(str, hops))})"
    before = hops[: hops.index(failing)]
    figures = f"; before it: {'; '.join(map(str, before))}" if before else ""
    return f"{failing.name} falls short first ({failing}{figures})"


def measure(
    out: Path, manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], checkpoint_dir: Path
) -> tuple[Hop, ...]:
    """Hops up to the first that falls short."""
    hops: list[Hop] = []
    for stage in _stages(out, manifest, entry, cases, checkpoint_dir):
        hop = stage()
        hops += [hop] if hop else []
        if hop and not hop.passed:
            break
    return tuple(hops)


def hops_of(
    out: Path, manifest: Manifest, entry: ArtifactEntry, case: str, checkpoint_dir: Path, lower_again: bool
) -> tuple[Hop, ...]:
    """All hops on one golden case; that of lowering, which takes a conversion, where it is asked for."""
    cases = [item for item in read_golden(out / GOLDEN_FOLDER).cases if item.name == case]
    rewrite, lower, *others = _stages(out, manifest, entry, cases, checkpoint_dir)
    hops = [stage() for stage in (rewrite, *([lower] if lower_again else []), *others)]
    return tuple(hop for hop in hops if hop is not None)


def _stages(
    out: Path, manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], checkpoint_dir: Path
) -> tuple[Callable[[], Hop | None], ...]:
    return (
        lambda: rewritten_hop(out, manifest, entry, cases, checkpoint_dir),
        lambda: lowered_hop(out, manifest, entry, cases, checkpoint_dir),
        lambda: quantized_hop(out, manifest, entry, cases),
        lambda: runtime_hop(out, manifest, entry, cases),
    )


def rewritten_hop(
    out: Path, manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], checkpoint_dir: Path
) -> Hop:
    """The torch module with the recipe's rewrites."""
    part, names = Part(out, entry.component, checkpoint_dir), tuple(case.name for case in cases)
    fired = ", ".join(record.name for record in entry.rewrites if record.fired)

    def run() -> float:
        return isolated(rewritten_snr_db, ConversionError, f"{entry.component} in torch")(TorchJob(part, names))

    return _hop("rewritten", f"torch after {fired}" if fired else "torch, nothing rewritten", manifest, entry, run)


@dataclass(frozen=True)
class Part:
    """One component of the export in ``out``, and the checkpoint that the export was made from."""

    out: Path
    component: str
    checkpoint: Path


@dataclass(frozen=True)
class TorchJob:
    """A component, and the names of golden cases."""

    part: Part
    cases: tuple[str, ...]


def rewritten_snr_db(job: TorchJob) -> float:
    """SNR of the torch module as it was lowered against the golden outputs, the worst case, in this process."""
    _, module, known = opened(job.part)
    return min(module.snr_db(case) for case in known if case.name in job.cases)


def opened(part: Part) -> tuple[Manifest, Rewritten, tuple[GoldenCase, ...]]:
    """An export's manifest, one component's torch module as it was lowered, and the golden cases.

    Raises:
        ArtifactError: the export was made from another checkpoint.
        GoldenError: its golden cases are unreadable or altered.
    """
    export, checkpoint = open_export(part.out), open_checkpoint(part.checkpoint)
    check_checkpoint(export.manifest, checkpoint)
    return export.manifest, rewritten(checkpoint, part.component, export.manifest.recipe), export.golden.cases


def lowered_hop(
    out: Path, manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], checkpoint_dir: Path
) -> Hop:
    """The recipe's own conversion once more, in float32 and without what comes after it."""
    recipe = _in_float32(manifest.recipe, entry.component)

    def run() -> float:
        with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
            step = BuildStep(checkpoint_dir, entry.component, recipe, out / GOLDEN_FOLDER, Path(scratch), {})
            isolated(build_component, ConversionError, f"{manifest.target} {entry.component}")(step)
            return _executed(manifest, entry, Path(scratch), cases, _as_written(manifest))

    return _hop("lowered", f"converted to {manifest.target} in float32", manifest, entry, run)


def quantized_hop(out: Path, manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase]) -> Hop | None:
    """The artifact's graph as it is written; None where it is float32 and :func:`runtime_hop` says all."""
    scheme, runtime = manifest.recipe.schemes[entry.component], _as_written(manifest)
    if scheme == _FLOAT32:
        return None
    what = f"{scheme.weights} weights, {scheme.activations} activations"
    return _hop("quantized", what, manifest, entry, lambda: _executed(manifest, entry, out, cases, runtime))


def runtime_hop(out: Path, manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase]) -> Hop | None:
    """The artifact in its runtime; None where that executes the graph as it is written, as the hop before did."""
    if _as_written(manifest) is None and manifest.recipe.schemes[entry.component] != _FLOAT32:
        return None
    return _hop("runtime", "executed by its runtime", manifest, entry, lambda: _executed(manifest, entry, out, cases))


def _as_written(manifest: Manifest) -> str | None:
    """Name of the runtime that executes a graph as it is written; None where the target's usual one does."""
    target = TARGETS[manifest.target]
    return target.as_written if isinstance(target, RunsAsWritten) else None


def _hop(name: str, what: str, manifest: Manifest, entry: ArtifactEntry, run: Callable[[], float]) -> Hop:
    least = manifest.recipe.tolerances[entry.component].snr_db
    try:
        return Hop(name, what, run(), least)
    except MdExportError as error:
        return Hop(name, what, -EXACT_DB, least, str(error))


def _executed(
    manifest: Manifest,
    entry: ArtifactEntry,
    folder: Path,
    cases: Sequence[GoldenCase],
    runtime: str | None = None,
) -> float:
    batches, wanted = golden_cases(manifest.recipe, entry, cases)
    outputs = execute(manifest.target, folder / entry.file, batches, runtime).outputs
    return min(snr_db(joined(made), want) for made, want in zip(outputs, wanted, strict=True))


def _in_float32(recipe: Recipe, component: str) -> Recipe:
    return dataclasses.replace(recipe, schemes={**recipe.schemes, component: _FLOAT32})


def _in_numbers(faults: Sequence[str]) -> bool:
    return any(isinstance(fault, Fault) and fault.check in _NUMBERS for fault in faults)
