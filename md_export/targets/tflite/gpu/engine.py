"""Compile a saved .tflite file for the GPU in LiteRT's engine, and execute it.

The engine can abort its process, and reports only on standard error which ops it leaves to the CPU; so
:func:`md_export.targets.tflite.gpu.engine.execute_on_gpu` runs it in a separate process and reads that.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import MissingExtraError, RuntimeFault
from md_export.spec.tensors import Array, Arrays, TensorSpec, check_arrays, load_batches, save_batches
from md_export.system.isolation import Limits, attempt
from md_export.system.workspace import scratch_folder

# Environment variables of the Vulkan loader, the newer one first; each may list several files.
VARIABLES: Final = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
MANIFEST: Final = "vk_swiftshader_icd.json"
DEBIAN: Final = Path("/usr/lib/chromium")
LOADER: Final = "libvulkan.so.1"
_TASKS: Final = Path("/proc/self/task")
_PERIOD_S: Final = 0.02
# Several checks, because a single one may fall between two pieces of work.
_LOOKS: Final = 5
# Part of the message of a GPU-only compilation that refuses a graph which the GPU supports in part.
_PARTLY: Final = "Some ops are not accelerated"
_REFERENCE: Final = "reference.safetensors"


@dataclass(frozen=True)
class Driver:
    """A driver's JSON manifest, and the environment variable that already names it, if any."""

    manifest: Path
    variable: str | None


def cache_folder() -> Path:
    """Return the folder of the driver that ``make gpu-driver`` installs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "md-export" / "gpu-driver"


def find_driver() -> Driver:
    """Return the driver that the environment names, else that of ``make gpu-driver``, else that of Debian's Chromium.

    Chromium includes SwiftShader, a software Vulkan driver. Mesa's llvmpipe of Debian 12 lacks a feature that the
    engine needs.

    Raises:
        MissingExtraError: no driver was found; the message says what to install.
    """
    for variable in VARIABLES:
        if os.environ.get(variable):
            manifest = Path(os.environ[variable].split(os.pathsep)[0])
            if not manifest.is_file():
                raise MissingExtraError(f"{variable} names {manifest}, which does not exist; correct it or unset it")
            return Driver(manifest, variable)
    for folder in (cache_folder(), DEBIAN):
        if (folder / MANIFEST).is_file():
            return Driver(folder / MANIFEST, None)
    raise MissingExtraError(
        "LiteRT's GPU engine needs a Vulkan driver, and none was found: run `make gpu-driver`, install Debian's "
        f"package chromium-common, or set {VARIABLES[0]} to the JSON file of a driver"
    )


def load_driver(driver: Driver) -> None:
    """Make this process use ``driver``; call it before the engine is created.

    Raises:
        MissingExtraError: there is no Vulkan loader beside the driver or in the system.
    """
    beside = driver.manifest.with_name(LOADER)
    try:
        # The engine opens the loader by name, and gets the one that is already open.
        ctypes.CDLL(str(beside) if beside.is_file() else LOADER)
    except OSError as error:
        raise MissingExtraError(f"the Vulkan loader cannot be loaded ({error}); install libvulkan1") from error
    if driver.variable is None:
        # The older variable, which every loader supports; the loader reads it when the engine starts.
        os.environ[VARIABLES[1]] = str(driver.manifest)


def wait_for_threads() -> None:
    """Wait until no other thread of this process runs in several checks; return at once on a system without ``/proc``.

    Reading an output waits for the engine, but at most 120 seconds; then it fails and leaves the buffer locked
    permanently. A full-size decoder takes longer in software. The driver's threads are busy until it has finished.
    """
    quiet = 0
    while _TASKS.is_dir() and quiet < _LOOKS:
        quiet = 0 if others_run() else quiet + 1
        time.sleep(_PERIOD_S)


def others_run() -> bool:
    """Whether a thread other than the calling one is running or waiting for a processor."""
    own = str(threading.get_native_id())
    return any(_state(task) == "R" for task in _TASKS.iterdir() if task.name != own)


def _state(task: Path) -> str:
    try:
        # After the name, which is in parentheses and may contain parentheses.
        return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # the thread ended meanwhile
        return ""


@dataclass(frozen=True)
class GpuExecution:
    """Result of a run on LiteRT's GPU engine.

    Attributes:
        outputs: one dict for each set of inputs; empty if the engine failed.
        resident: whether every op ran on the GPU; otherwise, ``outputs`` are partly computed by the engine's CPU.
        compile_seconds, run_seconds: time of the compilation that was executed, and of all executions together.
        reference: outputs of XNNPACK, if only the first ops were run.
        failure: reason for missing outputs: the engine's error, a crash, or the time limit.
        timed_out: whether the time limit was the reason.
        log: output of the engine; :func:`md_export.targets.tflite.gpu.residency.read_log` parses it.
    """

    outputs: list[dict[str, Array]] = field(default_factory=list)
    resident: bool = False
    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    reference: list[dict[str, Array]] = field(default_factory=list)
    failure: str | None = None
    timed_out: bool = False
    log: str = ""


def run_on_gpu(path: Path, batches: Sequence[Arrays]) -> GpuExecution:
    """Execute a file with one signature on each set of named inputs; shapes and dtypes must be the file's.

    Raises:
        MissingExtraError: there is no Vulkan driver.
        RuntimeFault: the engine cannot compile or execute the file.
    """
    load_driver(find_driver())
    started = time.perf_counter()
    try:
        model, resident = _compile(path)
        compiled = time.perf_counter()
        outputs = [_execute(model, batch) for batch in batches]
    except (RuntimeError, ValueError) as error:
        raise RuntimeFault(f"the GPU engine failed: {_last_line(error)}") from error
    return GpuExecution(outputs, resident, compiled - started, time.perf_counter() - compiled)


def _compile(path: Path) -> tuple[Any, bool]:
    """Return the compiled file, and whether all of it is on the GPU.

    For GPU and CPU together, ``is_fully_accelerated`` counts XNNPACK as an accelerator and is always true, so the
    first attempt is for the GPU alone.
    """
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator

    try:
        model = CompiledModel.from_file(str(path), hardware_accel=HardwareAccelerator.GPU)
        return model, model.is_fully_accelerated()
    except RuntimeError as error:
        if _PARTLY not in str(error):
            raise
    both = HardwareAccelerator.GPU | HardwareAccelerator.CPU
    return CompiledModel.from_file(str(path), hardware_accel=both), False


def _execute(model: Any, batch: Arrays) -> dict[str, Array]:
    (signature,) = model.get_signature_list()
    wanted, made = model.get_input_tensor_details(signature), model.get_output_tensor_details(signature)
    specs = [TensorSpec(name, tuple(item["shape"]), item["dtype"]) for name, item in wanted.items()]
    check_arrays("the file", specs, batch)
    inputs = {name: model.create_input_buffer_by_name(signature, name) for name in wanted}
    outputs = {name: model.create_output_buffer_by_name(signature, name) for name in made}
    for name, buffer in inputs.items():
        buffer.write(np.ascontiguousarray(batch[name]))
    model.run_by_name(signature, inputs, outputs)
    wait_for_threads()
    return {name: _read(buffer, made[name]["shape"], made[name]["dtype"]) for name, buffer in outputs.items()}


def _read(buffer: Any, shape: list[int], dtype: str) -> Array:
    values: Array = buffer.read(int(np.prod(shape)), np.dtype(dtype).type)
    return values.reshape(shape).copy()


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("└ ")


def execute_on_gpu(path: Path, batches: Sequence[Arrays], limit_s: float, ops: int | None = None) -> GpuExecution:
    """Run a .tflite file, or its first ``ops`` ops, on LiteRT's GPU engine, for ``limit_s`` seconds at most.

    Raises:
        MissingExtraError: there is no Vulkan driver. Every other failure is returned.
    """
    with scratch_folder() as scratch:
        ended = attempt(run_first_ops, GpuJob(path, batches, ops, scratch), Limits(limit_s))
        if isinstance(ended.error, MissingExtraError):
            raise ended.error
        reference = scratch / _REFERENCE
        return replace(
            ended.result or GpuExecution(),
            reference=load_batches(reference) if reference.is_file() else [],
            failure=ended.failure,
            timed_out=ended.timed_out,
            log=ended.log,
        )


@dataclass(frozen=True)
class GpuJob:
    """A file, the inputs of each execution, the number of its ops to run (None: all), and a folder for outputs."""

    path: Path
    batches: Sequence[Arrays]
    ops: int | None
    scratch: Path


def run_first_ops(job: GpuJob) -> GpuExecution | None:
    """Run a file on the GPU engine in this process, or its first ops there and on XNNPACK; None if there are no ops.

    XNNPACK's outputs go to a file, so they are available even if the GPU engine then ends the process.
    """
    from md_export.targets.tflite.observe import write_prefix
    from md_export.targets.tflite.run import load

    if job.ops is None:
        return run_on_gpu(job.path, job.batches)
    prefix = job.scratch / job.path.name
    if not write_prefix(job.path, job.ops, prefix):
        return None
    runner = load(prefix)
    save_batches([runner.run(batch) for batch in job.batches], job.scratch / _REFERENCE)
    return run_on_gpu(prefix, job.batches)
