"""Artifacts executed in their own runtimes, each in a process of its own; arrays travel as safetensors."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

from md_export.errors import RuntimeFault
from md_export.spec.sampler import Ddim
from md_export.spec.tensors import Array, Arrays, save_tensors
from md_export.targets.contract import Description
from md_export.worker.calling import call_worker


@dataclass(frozen=True)
class Exchange:
    """Arrays on their way to a worker and back, each kind in a file of ``folder``; ``request`` names them to it."""

    folder: Path
    request: Mapping[str, str]

    def read(self, answer: str = "outputs") -> list[dict[str, Array]]:
        """What the worker wrote; nothing where it did not come to that."""
        path = Path(self.request[answer])
        return load_batches(path) if path.is_file() else []


@contextmanager
def exchange(batches: Sequence[Arrays], *answers: str) -> Iterator[Exchange]:
    """Write ``inputs`` for a worker, and name files for its ``outputs`` and further ``answers``."""
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        request = {name: str(folder / f"{name}.safetensors") for name in ("inputs", "outputs", *answers)}
        save_batches(batches, Path(request["inputs"]))
        yield Exchange(folder, request)


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
    with exchange(batches) as files:
        request = {**files.request, "target": target, "path": str(path), "runtime": runtime}
        answer = call_worker("execute", request, RuntimeFault, f"{path.name} in the {target} runtime")
        return Execution(files.read(), Description(**answer["found"]), tuple(answer["hazards"]))


@dataclass(frozen=True)
class Walk:
    """The decoder's input ``[1, C, h, w]`` for each picture, and what went wrong inside the UNet on the way."""

    latents: list[Array]
    hazards: tuple[str, ...] = ()


def walk(target: str, path: Path, starts: Sequence[Arrays], ddim: Ddim, control: Path | None = None) -> Walk:
    """Take all steps of some pictures with a UNet's artifact, in its own runtime and one process.

    ``control``: a ControlNet's artifact, which takes part in each step. ``starts`` as in
    :func:`md_export.models.sampling.denoising.denoise`; raises as :func:`execute`.
    """
    with exchange(starts) as files:
        request = {**files.request, "target": target, "path": str(path), "ddim": dataclasses.asdict(ddim)}
        request |= {} if control is None else {"control": str(control)}
        what = f"{path.name} in the {target} runtime, {len(ddim.steps)} steps"
        answer = call_worker("walk", request, RuntimeFault, what)
        return Walk([batch["latent"] for batch in files.read()], tuple(answer["hazards"]))


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
