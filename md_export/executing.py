"""Artifacts executed in their own runtimes, each in a process of its own; arrays travel as safetensors."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from md_export.errors import RuntimeFault
from md_export.sampler import Ddim
from md_export.targets.contract import Description
from md_export.tensors import Array, Arrays, save_tensors
from md_export.workers import call_worker


@dataclass(frozen=True)
class Execution:
    """One output dict for each set of inputs, what the artifact was found to hold, and what went wrong inside it."""

    outputs: list[dict[str, Array]]
    found: Description
    hazards: tuple[str, ...] = ()


def execute(target: str, path: Path, batches: Sequence[Arrays], runtime: str | None = None) -> Execution:
    """Run an artifact on each set of inputs, in its own runtime and a process of its own.

    Raises:
        RuntimeFault: the runtime refused the artifact or its inputs, or crashed.
        MissingExtraError: the target's runtime is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        given, made = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_batches(batches, given)
        request = {"target": target, "path": str(path), "inputs": str(given), "outputs": str(made)}
        what = f"{path.name} in the {target} runtime"
        answer = call_worker("execute", {**request, "runtime": runtime}, RuntimeFault, what)
        return Execution(load_batches(made), Description(**answer["found"]), tuple(answer["hazards"]))


@dataclass(frozen=True)
class Walk:
    """The decoder's input ``[1, C, h, w]`` for each picture, and what went wrong inside the UNet on the way."""

    latents: list[Array]
    hazards: tuple[str, ...] = ()


def walk(target: str, path: Path, starts: Sequence[Arrays], ddim: Ddim, control: Path | None = None) -> Walk:
    """Take all steps of some pictures with a UNet's artifact, in its own runtime and one process.

    ``control``: a ControlNet's artifact, which takes part in each step. ``starts`` as in
    :func:`md_export.sampling.denoise`; raises as :func:`execute`.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        given, made = Path(scratch) / "starts.safetensors", Path(scratch) / "latents.safetensors"
        save_batches(starts, given)
        request = {"target": target, "path": str(path), "inputs": str(given), "outputs": str(made)}
        request |= {} if control is None else {"control": str(control)}
        what = f"{path.name} in the {target} runtime, {len(ddim.steps)} steps"
        answer = call_worker("walk", {**request, "ddim": dataclasses.asdict(ddim)}, RuntimeFault, what)
        return Walk([batch["latent"] for batch in load_batches(made)], tuple(answer["hazards"]))


def save_batches(batches: Sequence[Arrays], path: Path) -> None:
    """Write sets of named arrays into one safetensors file, keys ``index/name``."""
    save_tensors(
        {f"{index}/{name}": value for index, batch in enumerate(batches) for name, value in batch.items()}, path
    )


def load_batches(path: Path) -> list[dict[str, Array]]:
    """Read what :func:`save_batches` wrote."""
    batches: dict[int, dict[str, Array]] = {}
    for key, value in load_file(path).items():
        index, name = key.split("/", 1)
        batches.setdefault(int(index), {})[name] = value
    return [batches[index] for index in sorted(batches)]
