"""Artifacts executed in their own runtimes, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.errors import MdExportError, RuntimeFault, UsageError
from md_export.models.sampling.denoising import denoise
from md_export.spec.runner import Runner, WatchedRunner
from md_export.spec.sampler import Ddim
from md_export.spec.tensors import Array, Arrays
from md_export.system.isolation import isolated
from md_export.targets import TARGETS
from md_export.targets.contract import CountsCosts, Description
from md_export.targets.costs import OpCost


@dataclass(frozen=True)
class Execution:
    """One output dict for each set of inputs, what the artifact was found to hold, and what went wrong inside it."""

    outputs: list[dict[str, Array]]
    found: Description
    hazards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """An artifact, the inputs of each of its executions, and the runtime if it is not the target's own."""

    target: str
    path: Path
    batches: Sequence[Arrays]
    runtime: str | None = None


def execute(target: str, path: Path, batches: Sequence[Arrays], runtime: str | None = None) -> Execution:
    """Run an artifact on each set of inputs, in its own runtime and a process of its own.

    Raises:
        RuntimeFault: the runtime refused the artifact or its inputs, or crashed.
        MissingExtraError: the target's runtime is not installed.
    """
    what, modules = f"{path.name} in the {target} runtime", TARGETS[target].modules("run", "describe")
    return isolated(run_batches, RuntimeFault, what, modules)(Job(target, path, batches, runtime))


def run_batches(job: Job) -> Execution:
    """Run an artifact on each set of inputs, in this process."""
    target = TARGETS[job.target].open()
    runner = target.load(job.path, job.runtime) if job.runtime else target.load(job.path)
    outputs = [runner.run(batch) for batch in job.batches]
    return Execution(outputs, target.describe(job.path), hazards_of(runner))


def hazards_of(*runners: Runner) -> tuple[str, ...]:
    """What went wrong in all runs so far, where a runner sees it."""
    return tuple(line for one in runners if isinstance(one, WatchedRunner) for line in one.hazards())


@dataclass(frozen=True)
class Walk:
    """The decoder's input ``[1, C, h, w]`` for each picture, and what went wrong inside the UNet on the way."""

    latents: list[Array]
    hazards: tuple[str, ...] = ()


@dataclass(frozen=True)
class WalkJob:
    """All steps of some pictures with a UNet's artifact, and a ControlNet's if there is one."""

    target: str
    path: Path
    starts: Sequence[Arrays]
    ddim: Ddim
    control: Path | None = None


def walk(target: str, path: Path, starts: Sequence[Arrays], ddim: Ddim, control: Path | None = None) -> Walk:
    """Take all steps of some pictures with a UNet's artifact, in its own runtime and one process.

    ``control``: a ControlNet's artifact, which takes part in each step. ``starts`` as in
    :func:`md_export.models.sampling.denoising.denoise`; raises as :func:`execute`.
    """
    what = f"{path.name} in the {target} runtime, {len(ddim.steps)} steps"
    modules = TARGETS[target].modules("run")
    return isolated(take_steps, RuntimeFault, what, modules)(WalkJob(target, path, starts, ddim, control))


def take_steps(job: WalkJob) -> Walk:
    """Take all steps of some pictures, in this process."""
    from md_export.models.sampling.generate import only_output

    paths = [job.path] if job.control is None else [job.path, job.control]
    runner, *controls = (TARGETS[job.target].open().load(path) for path in paths)
    control = (lambda batches: [controls[0].run(batch) for batch in batches]) if controls else None
    latents = denoise(
        lambda batches: [only_output(runner.run(batch)) for batch in batches], job.starts, job.ddim, control
    )
    return Walk([*latents], hazards_of(runner, *controls))


@dataclass(frozen=True)
class CostJob:
    """An artifact whose operations are to be counted."""

    target: str
    path: Path


def costs(target: str, path: Path, failure: type[MdExportError]) -> tuple[OpCost, ...]:
    """Arithmetic and traffic of each operation of an artifact, read in a process of its own; nothing is run.

    Raises:
        MdExportError: it cannot be read; ``failure`` where the process died.
    """
    return isolated(count_costs, failure, path.name)(CostJob(target, path))


def count_costs(job: CostJob) -> tuple[OpCost, ...]:
    """Arithmetic and traffic of each operation of an artifact, read in this process."""
    target = TARGETS[job.target].open()
    if not isinstance(target, CountsCosts):
        raise UsageError(f"an estimate reads no {target.suffix} file")
    return target.costs(job.path)
