"""One artifact: checkpoint → module → rewrites → lower → quantize → file, inside a worker process."""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from md_export.artifact import ArtifactEntry, Measured, RewriteRecord, bytes_of_artifact, sha256_of_artifact
from md_export.checkpoint import open_checkpoint
from md_export.components import COMPONENTS, Component, ModelConfig
from md_export.errors import ConversionError
from md_export.layouts import layout_of
from md_export.parity.golden import read_golden
from md_export.parity.prepare import one_step
from md_export.recipe import Recipe, recipe_from_dict, recipe_to_dict
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from md_export.tensors import TensorSpec, select


@dataclass(frozen=True)
class BuildStep:
    """What one worker needs to make one artifact; ``notes`` are those that all components share."""

    checkpoint: Path
    component: str
    recipe: Recipe
    golden: Path
    out: Path
    notes: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain form for the worker's request."""
        paths = {name: str(getattr(self, name)) for name in ("checkpoint", "golden", "out")}
        return {
            **paths,
            "component": self.component,
            "recipe": recipe_to_dict(self.recipe),
            "notes": self.notes,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BuildStep:
        """Read what :meth:`to_dict` wrote."""
        paths = {name: Path(values[name]) for name in ("checkpoint", "golden", "out")}
        recipe = recipe_from_dict(values["recipe"], "recipe")
        return cls(component=values["component"], recipe=recipe, notes=values["notes"], **paths)


def build_component(step: BuildStep) -> ArtifactEntry:
    """Checkpoint → module → rewrites → lower → quantize → file; runs inside a worker process."""
    started = time.perf_counter()
    recipe, name = step.recipe, step.component
    checkpoint, component = open_checkpoint(step.checkpoint), COMPONENTS[name]
    target = TARGETS[recipe.target].open()
    module = checkpoint.module(name)
    consent = Consent(checkpoint.trained_substitutions, recipe.allow_drift)
    records = apply_rewrites(recipe.rewrites, name, module, one_step(checkpoint.config), consent)
    cases = read_golden(step.golden).cases
    given, made = surface(component, checkpoint.config, records)
    layout = layout_of(recipe)
    layout.adapt(name, module, given)
    inputs, outputs = layout.inputs(name, given), layout.outputs(name, made)
    # Every other case, so that half of those that judge an int8 artifact were not calibrated on.
    calibration = tuple(select(layout.pack(name, case.inputs(name)), inputs) for case in cases[::2])
    scheme = recipe.schemes[name]
    path = step.out / f"{layout.file(name)}{TARGETS[recipe.target].suffix}"
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        job = LoweringJob(
            name,
            module,
            inputs,
            outputs,
            calibration[0],
            scheme,
            calibration,
            Path(scratch),
            recipe.deployment_target,
            {**step.notes, **own_notes(name, inputs, outputs)},
        )
        target.save(target.quantize(target.lower(job), job), path)
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
        rewrites=records,
        measured=Measured(round(time.perf_counter() - started, 2), peak_resident_bytes()),
    )


def own_notes(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> dict[str, str]:
    """Which component it is, and the names that its artifact takes and gives, joined by commas."""
    joined = {"inputs": inputs, "outputs": outputs}
    return {"component": name} | {key: ",".join(spec.name for spec in specs) for key, specs in joined.items()}


def surface(
    component: Component, config: ModelConfig, records: tuple[RewriteRecord, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a rewritten component: a rewrite may fold an input away or rename the output."""
    rewrites = [REWRITES[record.name] for record in records if record.fired]
    dropped = {name for rewrite in rewrites for name in rewrite.drops}
    (output,) = component.outputs(config)
    for rewrite in rewrites:
        output = dataclasses.replace(output, name=rewrite.output or output.name)
    return tuple(spec for spec in component.inputs(config) if spec.name not in dropped), (output,)


def peak_resident_bytes() -> int:
    """Of this process. Linux' ``ru_maxrss`` survives exec and would report the parent's peak, hence VmHWM."""
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac
