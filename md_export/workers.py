"""One process per component and target: memory is bounded by the largest component, and a crash of a
converter or a runtime is an error message instead of the end of the run.

Requests and answers are JSON files, arrays travel as safetensors; a worker is ``python -m md_export.worker``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors.numpy import load_file

from md_export import errors
from md_export.errors import MdExportError, MissingExtraError, RuntimeFault
from md_export.memory import Watch, watching
from md_export.sampler import Ddim
from md_export.targets.contract import Description
from md_export.tensors import Array, Arrays, save_tensors

# Passive: threads that spin between a graph's many small ops make it ten times slower on a busy machine.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Ended:
    """How a worker ended.

    Attributes:
        answer: what it found, or ``error`` and ``message`` of our own; None where it died.
        death: how it died.
        timed_out: it was stopped at the time limit.
        log: everything that it wrote to the terminal.
        peak_bytes: most memory that it and its children were seen to hold, where that was limited.
        over_memory: it was stopped for holding more than it may.
    """

    answer: dict[str, Any] | None
    death: str
    timed_out: bool
    log: str
    peak_bytes: int = 0
    over_memory: bool = False


def call_worker(task: str, request: dict[str, Any], failure: type[MdExportError], what: str) -> dict[str, Any]:
    """Run one task in a process of its own and return its answer.

    Raises:
        MdExportError: the error that the worker reported, of its own class.
        ``failure``: the worker died; the message ends with its last lines.
    """
    return answer_of(run_worker(task, request), failure, what)


def answer_of(ended: Ended, failure: type[MdExportError], what: str) -> dict[str, Any]:
    """What a worker found; raises as :func:`call_worker`."""
    if ended.answer is None:
        raise failure(f"{what}: {ended.death}{_tail(ended.log)}")
    if "error" in ended.answer:
        raise getattr(errors, ended.answer["error"])(ended.answer["message"])
    return ended.answer


def run_worker(
    task: str, request: dict[str, Any], limit_s: float | None = None, most_bytes: int | None = None
) -> Ended:
    """Run one task in a process of its own; whatever it does is a result.

    It is stopped after ``limit_s`` seconds, or when it and its children hold more than ``most_bytes`` of memory.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        log = folder / "log.txt"
        watched = nullcontext(Watch()) if most_bytes is None else watching(folder / "pid", most_bytes)
        with log.open("wb") as stream, watched as watch:
            status = _wait(task, folder, stream, limit_s)
        text = log.read_text(encoding="utf-8", errors="replace")
        answer = folder / "answer.json"
        if status == 0 and answer.is_file():
            return Ended(json.loads(answer.read_text(encoding="utf-8")), "", False, text, watch.peak_bytes)
        death = _over(watch, most_bytes) if watch.over and most_bytes else _death(status, limit_s)
        return Ended(None, death, status is None, text, watch.peak_bytes, watch.over)


def _wait(task: str, folder: Path, stream: IO[bytes], limit_s: float | None) -> int | None:
    """The exit status; None at the time limit."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "md_export.worker", task, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**_ENVIRONMENT, **os.environ, "PYTHONHASHSEED": "0"},
            check=False,
            timeout=limit_s,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


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


def walk(target: str, path: Path, starts: Sequence[Arrays], ddim: Ddim) -> Walk:
    """Take all steps of some pictures with a UNet's artifact, in its own runtime and one process.

    ``starts`` as in :func:`md_export.sampling.denoise`; raises as :func:`execute`.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        given, made = Path(scratch) / "starts.safetensors", Path(scratch) / "latents.safetensors"
        save_batches(starts, given)
        request = {"target": target, "path": str(path), "inputs": str(given), "outputs": str(made)}
        what = f"{path.name} in the {target} runtime, {len(ddim.steps)} steps"
        answer = call_worker("walk", {**request, "ddim": dataclasses.asdict(ddim)}, RuntimeFault, what)
        return Walk([batch["latent"] for batch in load_batches(made)], tuple(answer["hazards"]))


@dataclass(frozen=True)
class GpuExecution:
    """What LiteRT's GPU engine did.

    Attributes:
        outputs: one dict for each set of inputs; none where it failed.
        reference: XNNPACK's, where only the first ops were run.
        resident: every op ran on the GPU.
        compile_seconds, run_seconds: of one compilation and of all executions together.
        failure: why there are no outputs: the engine's error, a crash, or the time limit.
        timed_out: it was the time limit.
        log: what the engine wrote; read by :func:`md_export.targets.tflite.gpu.log.read_log`.
    """

    outputs: list[dict[str, Array]]
    reference: list[dict[str, Array]]
    resident: bool
    compile_seconds: float
    run_seconds: float
    failure: str | None
    timed_out: bool
    log: str


def execute_on_gpu(path: Path, batches: Sequence[Arrays], limit_s: float, ops: int | None = None) -> GpuExecution:
    """Run a .tflite file, or its first ``ops`` ops, on LiteRT's GPU engine, for ``limit_s`` seconds at most.

    Raises:
        MissingExtraError: there is no Vulkan driver. Every other failure is a result.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        files = {name: str(Path(scratch) / f"{name}.safetensors") for name in ("inputs", "outputs", "reference")}
        save_batches(batches, Path(files["inputs"]))
        ended = run_worker("execute_on_gpu", {**files, "path": str(path), "ops": ops}, limit_s)
        answer = ended.answer or {"message": ended.death}
        if answer.get("error") == MissingExtraError.__name__:
            raise MissingExtraError(answer["message"])
        outputs, reference = (
            load_batches(Path(files[name])) if Path(files[name]).is_file() else [] for name in ("outputs", "reference")
        )
        return GpuExecution(
            outputs=outputs,
            reference=reference,
            resident=answer.get("resident", False),
            compile_seconds=answer.get("compile_seconds", 0.0),
            run_seconds=answer.get("run_seconds", 0.0),
            failure=answer.get("message"),
            timed_out=ended.timed_out,
            log=ended.log,
        )


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


def _death(status: int | None, limit_s: float | None) -> str:
    if status is None:
        return f"the process was stopped at the time limit of {limit_s:g} s"
    if status == -signal.SIGKILL:
        return "the process was killed, most likely for lack of memory; free memory or export one --component at a time"
    if status < 0:
        return f"the process crashed ({signal.Signals(-status).name})"
    return f"the process failed (status {status})"


def _over(watch: Watch, most_bytes: int) -> str:
    held, most = watch.peak_bytes / 1e9, most_bytes / 1e9
    return f"the process was stopped when it held {held:.2f} GB of memory, more than the {most:.2f} GB it was given"


def _tail(log: str, lines: int = 6) -> str:
    text = log.strip().splitlines()
    return "; its last lines:\n  " + "\n  ".join(text[-lines:]) if text else ""
