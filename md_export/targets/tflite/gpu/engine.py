"""Compile a saved .tflite file for the GPU by LiteRT's engine and execute it.

The engine can abort the process it runs in, and tells on standard error alone which ops it leaves to the CPU:
:func:`md_export.targets.tflite.gpu.process.execute_on_gpu` keeps it in a process of its own and reads that.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import MissingExtraError, RuntimeFault
from md_export.spec.tensors import Array, Arrays

# The Vulkan loader's own variables, the newer one first; each may list several files.
VARIABLES: Final = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
MANIFEST: Final = "vk_swiftshader_icd.json"
DEBIAN: Final = Path("/usr/lib/chromium")
LOADER: Final = "libvulkan.so.1"
_TASKS: Final = Path("/proc/self/task")
_PERIOD_S: Final = 0.02
# One look may fall between two pieces of work.
_LOOKS: Final = 5
# From the message with which a compilation for the GPU alone refuses a graph that it could take in part.
_PARTLY: Final = "Some ops are not accelerated"


@dataclass(frozen=True)
class Driver:
    """A driver's JSON manifest, and the variable that names it already, if one does."""

    manifest: Path
    variable: str | None


def cache_folder() -> Path:
    """Where ``make gpu-driver`` puts the driver."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "md-export" / "gpu-driver"


def find_driver() -> Driver:
    """The driver that the environment names, else the one of ``make gpu-driver``, else Chromium's of Debian.

    SwiftShader, a Vulkan driver in software, comes with Chromium. Mesa's llvmpipe of Debian 12 lacks a feature that
    the engine needs.

    Raises:
        MissingExtraError: there is none; the message says what to install.
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
    """Make this process use ``driver``; to be called before the engine is created.

    Raises:
        MissingExtraError: no Vulkan loader lies beside the driver or in the system.
    """
    beside = driver.manifest.with_name(LOADER)
    try:
        # The engine opens the loader by name, and gets the one that is open already.
        ctypes.CDLL(str(beside) if beside.is_file() else LOADER)
    except OSError as error:
        raise MissingExtraError(f"the Vulkan loader cannot be loaded ({error}); install libvulkan1") from error
    if driver.variable is None:
        # The older of the two, which every loader knows; the loader reads it when the engine starts.
        os.environ[VARIABLES[1]] = str(driver.manifest)


def wait_for_threads() -> None:
    """Return when no other thread of this process has run at several looks; at once on a system without ``/proc``.

    Reading an output waits for the engine, but for 120 seconds at most; then it fails and leaves the buffer locked
    for good. A full-size decoder takes longer in software. The driver's threads are busy until all is computed.
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
        # After the name, which stands in parentheses and may hold some itself.
        return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # the thread ended meanwhile
        return ""


@dataclass(frozen=True)
class GpuRun:
    """Result of running a file on the engine.

    Attributes:
        outputs: one dict for each set of inputs.
        resident: every op runs on the GPU; else the engine's CPU took part in ``outputs``.
        compile_seconds: of the compilation that was executed.
        run_seconds: of all executions together.
    """

    outputs: list[dict[str, Array]]
    resident: bool
    compile_seconds: float
    run_seconds: float


def run_on_gpu(path: Path, batches: Sequence[Arrays]) -> GpuRun:
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
    return GpuRun(outputs, resident, compiled - started, time.perf_counter() - compiled)


def _compile(path: Path) -> tuple[Any, bool]:
    """The compiled file and whether all of it is on the GPU.

    Asked for GPU and CPU together, ``is_fully_accelerated`` counts XNNPACK as an accelerator and is always
    true; so the GPU is asked alone first.
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
    if set(batch) != set(wanted):
        raise RuntimeFault(f"the file takes the inputs {sorted(wanted)}, not {sorted(batch)}")
    inputs = {name: model.create_input_buffer_by_name(signature, name) for name in wanted}
    outputs = {name: model.create_output_buffer_by_name(signature, name) for name in made}
    for name, buffer in inputs.items():
        shape, dtype = tuple(batch[name].shape), str(batch[name].dtype)
        if (list(shape), dtype) != (wanted[name]["shape"], wanted[name]["dtype"]):
            raise RuntimeFault(
                f"input {name} must be {wanted[name]['dtype']} {wanted[name]['shape']}, not {dtype} {list(shape)}"
            )
        buffer.write(np.ascontiguousarray(batch[name]))
    model.run_by_name(signature, inputs, outputs)
    wait_for_threads()
    return {name: _read(buffer, made[name]["shape"], made[name]["dtype"]) for name, buffer in outputs.items()}


def _read(buffer: Any, shape: list[int], dtype: str) -> Array:
    values: Array = buffer.read(int(np.prod(shape)), np.dtype(dtype))
    return values.reshape(shape).copy()


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("└ ")
