"""Find the first stage of an artifact (rewrite, lowering, quantization, runtime) where accuracy drops.

    checkpoint → rewritten torch module → lowered to float32 → quantized by the recipe → executed by the runtime

The output of each stage (hop) is compared with the golden output, which torch computed from the checkpoint.
"""

from __future__ import annotations

import dataclasses
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
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import is_style_input, joined
from md_export.system.isolation import isolated
from md_export.system.workspace import scratch_folder
from md_export.targets import TARGETS
from md_export.targets.execution import execute

Progress = Callable[[str], None]
# Checks on the output values. A hop can explain only failures of these checks.
_NUMBERS: Final = (Check.FIGURES, Check.FINITE)
_FLOAT32: Final = QuantScheme("float32", "float32")


@dataclass(frozen=True)
class Hop:
    """Accuracy of one stage's output against the golden output, for the worst of the cases that were run.

    Attributes:
        name: ``rewritten``, ``lowered``, ``quantized`` or ``runtime``.
        what: description of the stage.
        snr_db: SNR of the worst case in decibels.
        least_snr_db: threshold that the recipe sets for the component, in decibels.
        failure: reason why the stage has no output; ``snr_db`` is -:data:`EXACT_DB` in that case.
    """

    name: str
    what: str
    snr_db: float
    least_snr_db: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether the stage meets the recipe's threshold; NaN does not."""
        return self.snr_db >= self.least_snr_db

    def __str__(self) -> str:
        figure = "exact" if self.snr_db >= EXACT_DB else f"{self.snr_db:.1f} dB"
        return f"{self.what}: {self.failure or figure}"


def failing_hop(hops: Sequence[Hop]) -> Hop | None:
    """Return the first hop below its threshold, or None."""
    return next((hop for hop in hops if not hop.passed), None)


def explain(out: Path, result: Verdict, checkpoint_dir: Path, progress: Progress) -> list[str]:
    """Return one line for each component with failing numbers, which names the hop where they first fail.

    Each such component costs one conversion to float32, unless its rewritten module already fails.
    """
    manifest, cases = read_manifest(out), read_golden(out / GOLDEN_FOLDER).base
    faults = [(item.component, fault) for item in result.components for fault in item.faults]
    short = {component for component, fault in faults if isinstance(fault, Fault) and fault.check in _NUMBERS}
    lines = []
    for entry in manifest.artifacts:
        if entry.component in short:
            progress(f"{entry.component} falls short: find the hop")
            lines.append(f"{entry.component}: {verdict(measure(out, manifest, entry, cases, checkpoint_dir))}")
    return lines


def verdict(hops: Sequence[Hop]) -> str:
    """Describe the hops in one sentence: the failing hop first, then the metrics of the hops before it."""
    failing = failing_hop(hops)
    if failing is None:
        return f"no hop falls short in SNR ({'; '.join(map(str, hops))})"
    before = hops[: hops.index(failing)]
    figures = f"; before it: {'; '.join(map(str, before))}" if before else ""
    return f"{failing.name} falls short first ({failing}{figures})"


def measure(
    out: Path, manifest: Manifest, entry: ArtifactEntry, cases: Sequence[GoldenCase], checkpoint_dir: Path
) -> tuple[Hop, ...]:
    """Measure the hops in order, up to and including the first that is below its threshold."""
    hops: list[Hop] = []
    stages = _Stages(out, manifest, entry, cases, checkpoint_dir)
    for stage in (stages.rewritten, stages.lowered, stages.quantized, stages.runtime):
        hop = stage()
        hops += [hop] if hop else []
        if hop and not hop.passed:
            break
    return tuple(hops)


def hops_of(
    out: Path, manifest: Manifest, entry: ArtifactEntry, case: str, checkpoint_dir: Path, lower_again: bool
) -> tuple[Hop, ...]:
    """Measure all hops on one golden case; ``lower_again`` includes the lowering hop, which needs a conversion."""
    cases = [item for item in read_golden(out / GOLDEN_FOLDER).cases if item.name == case]
    stages = _Stages(out, manifest, entry, cases, checkpoint_dir)
    lowered = stages.lowered() if lower_again else None
    hops = (stages.rewritten(), lowered, stages.quantized(), stages.runtime())
    return tuple(hop for hop in hops if hop is not None)


@dataclass(frozen=True)
class Part:
    """A component of the export in ``out``, and the checkpoint that the export was made from."""

    out: Path
    component: str
    checkpoint: Path


@dataclass(frozen=True)
class TorchJob:
    """A component, and the names of golden cases."""

    part: Part
    cases: tuple[str, ...]


def rewritten_snr_db(job: TorchJob) -> float:
    """Return the SNR in decibels of the torch module that was lowered, against the golden outputs, for the worst case.

    Runs in the calling process.
    """
    _, module, known = opened(job.part)
    return min(module.snr_db(case) for case in known if case.name in job.cases)


def opened(part: Part) -> tuple[Manifest, Rewritten, tuple[GoldenCase, ...]]:
    """Return an export's manifest, the torch module that was lowered for one component, and the base's golden cases.

    Raises:
        ArtifactError: the export was made from another checkpoint.
        GoldenError: the golden cases are unreadable or altered.
    """
    export, checkpoint = open_export(part.out), open_checkpoint(part.checkpoint)
    check_checkpoint(export.manifest, checkpoint)
    module = rewritten(checkpoint, part.component, export.manifest.recipe)
    inputs = export.manifest.entry_for(part.component).inputs
    module = dataclasses.replace(module, style_inputs=tuple(spec for spec in inputs if is_style_input(spec.name)))
    return export.manifest, module, export.golden.base


@dataclass(frozen=True)
class _Stages:
    """Stages of one artifact of the export in ``out``, measured on golden cases."""

    out: Path
    manifest: Manifest
    entry: ArtifactEntry
    cases: Sequence[GoldenCase]
    checkpoint: Path

    def rewritten(self) -> Hop:
        """Measure the torch module after the recipe's rewrites."""
        name = self.entry.component
        job = TorchJob(Part(self.out, name, self.checkpoint), tuple(case.name for case in self.cases))
        fired = ", ".join(record.name for record in self.entry.rewrites if record.fired)
        what = f"torch after {fired}" if fired else "torch, nothing rewritten"
        return self._hop(
            "rewritten", what, lambda: isolated(rewritten_snr_db, ConversionError, f"{name} in torch")(job)
        )

    def lowered(self) -> Hop:
        """Repeat the recipe's conversion in float32, without quantization, and measure its output."""
        recipe, name = self.manifest.recipe, self.entry.component
        plain = dataclasses.replace(recipe, schemes={**recipe.schemes, name: _FLOAT32})

        def run() -> float:
            with scratch_folder() as scratch:
                step = BuildStep(self.checkpoint, name, plain, self.out / GOLDEN_FOLDER, scratch, {})
                isolated(build_component, ConversionError, f"{self.manifest.target} {name}")(step)
                return self._executed(scratch, self._as_written, styled=False)

        return self._hop("lowered", f"converted to {self.manifest.target} in float32", run)

    def quantized(self) -> Hop | None:
        """Measure the artifact's graph, executed as written.

        Returns None if the component is stored and computed in float32; :meth:`runtime` covers that case.
        """
        scheme = self.manifest.recipe.schemes[self.entry.component]
        if scheme == _FLOAT32:
            return None
        what = f"{scheme.weights} weights, {scheme.activations} activations"
        return self._hop("quantized", what, lambda: self._executed(self.out, self._as_written))

    def runtime(self) -> Hop | None:
        """Measure the artifact in its runtime.

        Returns None if the runtime executes the graph as written and the quantized hop has already measured that.
        """
        if self._as_written is None and self.manifest.recipe.schemes[self.entry.component] != _FLOAT32:
            return None
        return self._hop("runtime", "executed by its runtime", lambda: self._executed(self.out))

    @property
    def _as_written(self) -> str | None:
        """Name of the runtime that executes a graph as written; None if the target's usual runtime does."""
        return TARGETS[self.manifest.target].as_written

    def _hop(self, name: str, what: str, run: Callable[[], float]) -> Hop:
        least = self.manifest.recipe.tolerances[self.entry.component].snr_db
        try:
            return Hop(name, what, run(), least)
        except MdExportError as error:
            return Hop(name, what, -EXACT_DB, least, str(error))

    def _executed(self, folder: Path, runtime: str | None = None, styled: bool = True) -> float:
        inputs = tuple(spec for spec in self.entry.inputs if styled or not is_style_input(spec.name))
        entry = dataclasses.replace(self.entry, inputs=inputs)
        batches, wanted = golden_cases(self.manifest.recipe, entry, self.cases)
        outputs = execute(self.manifest.target, folder / self.entry.file, batches, runtime).outputs
        return min(snr_db(joined(made), want) for made, want in zip(outputs, wanted, strict=True))
