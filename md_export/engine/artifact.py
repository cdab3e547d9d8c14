"""Build one artifact in a worker process: checkpoint → module → rewrites → lower → quantize → file."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.errors import ConversionError
from md_export.parity.golden.folder import read_case, read_index
from md_export.parity.golden.surface import calibration_inputs
from md_export.parity.rewritten_module import adjust
from md_export.parity.styled_module import WithStyles, styled
from md_export.spec.artifact import ArtifactEntry, Measured, bytes_of_artifact, data_of, sha256_of_artifact
from md_export.spec.calibration import RangeRule
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_checks import ANY_LITERT
from md_export.spec.tensors import TensorSpec
from md_export.system.memory import release_weights
from md_export.system.workspace import scratch_folder
from md_export.targets import TARGETS, suffix_of
from md_export.targets.contract import Lints, LoweringJob
from md_export.targets.layouts import layout_of
from md_export.targets.lint.report import LintReport


@dataclass(frozen=True)
class BuildStep:
    """Input of :func:`build_component`.

    Attributes:
        checkpoint: folder of the checkpoint.
        golden: folder of the golden cases.
        out: folder for the artifact.
        notes: metadata to store in the artifact, in addition to :func:`own_notes`.
        calibration: folder of calibration cases; None: the golden cases are used.
        styles: LoRA file of each style that changes the component, ``FILE`` or ``FILE:scale``, by the style's name.
    """

    checkpoint: Path
    component: str
    recipe: Recipe
    golden: Path
    out: Path
    notes: dict[str, str]
    calibration: Path | None = None
    styles: Mapping[str, str] = field(default_factory=dict)


def build_component(step: BuildStep) -> ArtifactEntry:
    """As :func:`build_and_tell`, telling nothing."""
    return build_and_tell(step, lambda _: None)


def build_and_tell(step: BuildStep, tell: Callable[[str], None]) -> ArtifactEntry:
    """Build one artifact and return its manifest entry; runs in a worker process.

    ``tell`` is called with what is being done.

    Raises:
        ConversionError: the conversion turned weights into NaN or Inf, or a known fault concerns the artifact on a
            runtime that the recipe names.
    """
    started = time.perf_counter()
    recipe, name = step.recipe, step.component
    checkpoint = open_checkpoint(step.checkpoint)
    target = TARGETS[recipe.target].open()
    tell("applying the rewrites")
    made = styled(checkpoint, name, recipe, step.styles)
    part = made.part
    made.save(step.out)
    snr_db = None
    # Otherwise torch would be compared with itself: the module is the one that the golden cases are from.
    if recipe.rewrites or recipe.layout or recipe.chunks or step.styles:
        index = read_index(step.golden)
        snr_db = part.snr_db(read_case(step.golden, index.cases[0], index.family))
    release_weights(part.module)
    base = calibration_inputs(recipe, part, step.golden, step.calibration)
    calibration = WithStyles(base, made.values)
    tell("choosing the stored values")
    adjust(part, target, base)  # as an audit does, which has no styles
    inputs, outputs, scheme = part.inputs, part.outputs, part.scheme
    path = step.out / f"{layout_of(recipe).file(name)}{suffix_of(target, recipe.form)}"
    with scratch_folder() as scratch:
        job = LoweringJob(
            name,
            part.module,
            inputs,
            outputs,
            calibration[0],
            scheme,
            calibration,
            scratch,
            recipe.deployment_target,
            {**step.notes, **own_notes(name, inputs, outputs), **({"form": recipe.form} if recipe.form else {})},
            RangeRule() if recipe.calibration is None else recipe.calibration.rule,
            npu=bool(recipe.npu),
        )
        tell("converting")
        lowered = target.lower(job)
        part.module.to("meta")  # the converter has the weights; the code below needs only names and classes
        tell("quantizing and saving")
        lowered.quantize(job).save(path)
        del lowered
    tell("reading the file back")
    found = target.describe(path)
    if found.not_finite:
        raise ConversionError(
            f"{recipe.target} {name}: conversion turned the weights {', '.join(found.not_finite[:5])} into NaN or Inf"
        )
    if recipe.min_litert not in (None, ANY_LITERT) and isinstance(target, Lints):
        refuse_known_faults(f"{recipe.target} {name}", target.lint(path), recipe.min_litert)
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


def refuse_known_faults(what: str, report: LintReport, least: str) -> None:
    """Raise ConversionError if a known fault of the runtime's version ``least`` or later concerns an artifact."""
    if report.known and (found := report.known.blocking(least)):
        raise ConversionError(f"{what}: a known fault concerns LiteRT {least} (min_litert) or a later one: on {found}")


def own_notes(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Return the metadata of one component: its name, and the names of its inputs and outputs joined by commas."""
    joined = {"inputs": inputs, "outputs": outputs}
    return {"component": name} | {key: ",".join(spec.name for spec in specs) for key, specs in joined.items()}


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process in bytes.

    On Linux ``ru_maxrss`` survives exec and would report the parent's peak, so VmHWM is read instead.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS reports bytes
