"""Execute artifacts in their runtimes, each in a separate process.

Nothing here imports torch at once: a runtime does not need it, and importing it takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from md_export.errors import MdExportError, RuntimeFault, UsageError
from md_export.models.sampling.sampler import Sampler
from md_export.models.values import LAST
from md_export.models.walk import Steps, Tensors
from md_export.spec.artifact import artifact_path
from md_export.spec.manifest import Manifest
from md_export.spec.names import FamilyName
from md_export.spec.sampler import ManySteps, OneStep
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array, Arrays, Runner, TensorSpec, WatchedRunner, select
from md_export.system.isolation import isolated
from md_export.system.workspace import scratch_folder
from md_export.targets import TARGETS
from md_export.targets.contract import CountsCosts, Description, LoweringJob, Target
from md_export.targets.operations import OpCost

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Execution:
    """Result of a run: one output dict for each set of inputs, the artifact's description, and problems inside it."""

    outputs: list[dict[str, Array]]
    found: Description
    hazards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """An artifact, the inputs of each execution if there is any, and the runtime if it is not the target's default."""

    target: str
    path: Path
    batches: Sequence[Arrays] = ()
    runtime: str | None = None


def execute(target: str, path: Path, batches: Sequence[Arrays], runtime: str | None = None) -> Execution:
    """Run an artifact on each set of inputs, in its runtime and in a separate process.

    Raises:
        RuntimeFault: the runtime refused the artifact or its inputs, or crashed.
        MissingExtraError: the target's runtime is not installed.
    """
    what = f"{path.name} in the {target} runtime"
    return isolated(run_batches, RuntimeFault, what, _preload(target))(Job(target, path, batches, runtime))


def _preload(target: str) -> tuple[str, ...]:
    """Modules for a worker to have imported."""
    return (f"md_export.targets.{target}.saved",)


def run_batches(job: Job) -> Execution:
    """Run an artifact on each set of inputs, in this process."""
    target = TARGETS[job.target].open()
    runner = target.load(job.path, job.runtime) if job.runtime else target.load(job.path)
    outputs = [runner.run(batch) for batch in job.batches]
    return Execution(outputs, target.describe(job.path), hazards_of(runner))


def hazards_of(*runners: Runner) -> tuple[str, ...]:
    """Return the problems in all runs so far, from the runners that check for them."""
    return tuple(line for one in runners if isinstance(one, WatchedRunner) for line in one.hazards())


@dataclass(frozen=True)
class Part:
    """An artifact that is executed in each step: its component, path and inputs."""

    component: str
    path: Path
    inputs: tuple[TensorSpec, ...]


def parts_of(out: Path, manifest: Manifest, steps: Steps, pictures: Sequence[Arrays]) -> tuple[Part, ...]:
    """Return the artifacts of an export that are executed in each step of some pictures.

    Raises:
        ArtifactError: an artifact is missing.
    """
    asked = [row.name for row in steps.components if all(row.is_asked(values) for values in pictures)]
    entries = [manifest.entry_for(name) for name in asked]
    return tuple(Part(entry.component, artifact_path(out, entry), entry.inputs) for entry in entries)


@dataclass(frozen=True)
class StepsJob:
    """Values of some pictures before the first step, and the artifacts of a target that compute all steps."""

    target: str
    family: FamilyName
    parts: tuple[Part, ...]
    constants: ManySteps
    pictures: tuple[dict[str, Array], ...]


@dataclass(frozen=True)
class StepsTaken:
    """Decoder input ``[1, C, h, w]`` for each picture, and problems inside the artifacts during the steps."""

    latents: tuple[Array, ...]
    hazards: tuple[str, ...] = ()


def take_steps(target: str, parts: Sequence[Part], steps: Steps, pictures: Sequence[Tensors]) -> tuple[str, ...]:
    """Take all steps of some pictures with artifacts in their runtimes, in one process that loads each artifact once.

    Adds the latent to the values of each picture and returns the problems inside the artifacts; raises as
    :func:`execute`.
    """
    constants = steps.sampler.constants
    assert not isinstance(constants, OneStep)  # noqa: S101 (a single step needs no process that stays)
    names = " and ".join(part.path.name for part in parts)
    what = f"{names} in the {target} runtime, {len(constants.steps)} steps"
    job = StepsJob(target, steps.family.form.name, tuple(parts), constants, tuple(pictures))
    taken = isolated(take_all, RuntimeFault, what, _preload(target))(job)
    for values, latent in zip(pictures, taken.latents, strict=False):
        values[LAST.key] = latent
    return taken.hazards


def take_all(job: StepsJob) -> StepsTaken:
    """Load the artifacts of a job and take all of its steps, in this process."""
    from md_export.models.families import family_named

    target = TARGETS[job.target].open()
    runners = {part.component: target.load(part.path) for part in job.parts}
    pictures = [dict(values) for values in job.pictures]
    family = family_named(job.family)
    steps = Steps(family, tuple(family[part.component] for part in job.parts), Sampler(job.constants))
    run_steps(steps, job.parts, lambda part, batches: [runners[part.component].run(b) for b in batches], pictures)
    latents = tuple(values[LAST.key] for values in pictures if LAST.key in values)
    return StepsTaken(latents, hazards_of(*runners.values()))


def run_steps(
    steps: Steps,
    parts: Sequence[Part],
    run: Callable[[Part, Sequence[Arrays]], Sequence[Arrays]],
    pictures: Sequence[Tensors],
) -> None:
    """Take all steps; ``run`` executes a part on several sets of its inputs and returns the outputs."""
    by_name = {part.component: part for part in parts}

    def run_named(component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        if not batches:
            return []
        part = by_name[component]
        return run(part, [select(batch, part.inputs) for batch in batches])

    steps.take(run_named, pictures)


def costs(target: str, path: Path, failure: type[MdExportError]) -> tuple[OpCost, ...]:
    """Return arithmetic and memory traffic of each operation, read in a separate process without running the artifact.

    Raises:
        MdExportError: the artifact cannot be read; ``failure`` if the process died.
    """
    return isolated(count_costs, failure, path.name)(Job(target, path))


def count_costs(job: Job) -> tuple[OpCost, ...]:
    """Return arithmetic and memory traffic of each operation of an artifact, read in this process."""
    target = TARGETS[job.target].open()
    if not isinstance(target, CountsCosts):
        raise UsageError(f"estimates do not support {target.suffix} files")
    return target.costs(job.path)


def answer_of(
    target: Target, suffix: str, module: nn.Module, given: Arrays, output: TensorSpec, scheme: QuantScheme
) -> Array:
    """Lower, quantize, save and load a module, and return the runtime's outputs for ``given``.

    ``given`` is float32, in the order of the module's inputs.

    Raises:
        MdExportError: the module cannot be converted, or does not run.
    """
    with scratch_folder() as scratch:
        job = LoweringJob(
            component="unet",
            module=module,
            inputs=tuple(TensorSpec(name, value.shape, "float32") for name, value in given.items()),
            outputs=(output,),
            example=given,
            scheme=scheme,
            calibration=(given,),
            workdir=scratch,
        )
        path = scratch / f"trial{suffix}"
        target.lower(job).quantize(job).save(path)
        return target.load(path).run(given)[output.name]
