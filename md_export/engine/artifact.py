"""One artifact: checkpoint → module → rewrites → lower → quantize → file, inside a worker process."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.errors import ConversionError
from md_export.parity.golden.calibration import calibration_inputs
from md_export.parity.golden.folder import read_case, read_index
from md_export.parity.rewritten_module import adjust, rewritten
from md_export.spec.artifact import ArtifactEntry, Measured, bytes_of_artifact, data_of, sha256_of_artifact
from md_export.spec.calibration import RangeRule
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import TensorSpec
from md_export.system.memory import release_weights
from md_export.targets import TARGETS, suffix_of
from md_export.targets.contract import LoweringJob
from md_export.targets.layouts import layout_of


@dataclass(frozen=True)
class BuildStep:
    """What one worker needs to make one artifact.

    Attributes:
        notes: those that all components share.
        calibration: folder of cases made for it; None: the golden ones serve.
    """

    checkpoint: Path
    component: str
    recipe: Recipe
    golden: Path
    out: Path
    notes: dict[str, str]
    calibration: Path | None = None


def build_component(step: BuildStep) -> ArtifactEntry:
    """Checkpoint → module → rewrites → lower → quantize → file; runs inside a worker process."""
    started = time.perf_counter()
    recipe, name = step.recipe, step.component
    checkpoint = open_checkpoint(step.checkpoint)
    target = TARGETS[recipe.target].open()
    part = rewritten(checkpoint, name, recipe)
    snr_db = part.snr_db(read_case(step.golden, read_index(step.golden).cases[0]))
    release_weights(part.module)
    calibration = calibration_inputs(recipe, part, step.golden, step.calibration)
    adjust(part, target, calibration)
    inputs, outputs, scheme = part.inputs, part.outputs, recipe.schemes[name]
    path = step.out / f"{layout_of(recipe).file(name)}{suffix_of(target, recipe.form)}"
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        job = LoweringJob(
            name,
            part.module,
            inputs,
            outputs,
            calibration[0],
            scheme,
            calibration,
            Path(scratch),
            recipe.deployment_target,
            {**step.notes, **own_notes(name, inputs, outputs), **({"form": recipe.form} if recipe.form else {})},
            RangeRule() if recipe.calibration is None else recipe.calibration.rule,
            npu=bool(recipe.npu),
        )
        lowered = target.lower(job)
        part.module.to("meta")  # the converter has the weights; what follows asks for names and classes alone
        lowered.quantize(job).save(path)
        del lowered
    found = target.describe(path)
    if found.not_finite:
        raise ConversionError(
            f"{recipe.target} {name}: conversion made NaN or Inf of the weights {', '.join(found.not_finite[:5])}"
        )
    return ArtifactEntry(
        component=name,
        file=path.name,
        sha256=sha256_of_artifact(path),
        bytes=bytes_of_artifact(path),
        weights=scheme.weights,
        activations=scheme.activations,
        stored=found.stored,
        ops=found.ops,
        inputs=inputs,
        outputs=outputs,
        rewrites=part.records,
        measured=Measured(round(time.perf_counter() - started, 2), peak_resident_bytes()),
        rewritten_snr_db=snr_db,
        data=data.name if (data := data_of(path)) else None,
    )


def own_notes(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Which component it is, and the names that its artifact takes and gives, joined by commas."""
    joined = {"inputs": inputs, "outputs": outputs}
    return {"component": name} | {key: ",".join(spec.name for spec in specs) for key, specs in joined.items()}


def peak_resident_bytes() -> int:
    """Of this process. Linux' ``ru_maxrss`` survives exec and would report the parent's peak, hence VmHWM."""
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac
