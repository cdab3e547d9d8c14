"""Named tensors: specs, files, and the protocols of runners that compute them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from md_export.errors import OutputError, RuntimeFault, UsageError
from md_export.spec.loras import INPUT_PREFIX
from md_export.system.files import write_whole
from md_export.system.wire import InArrayFile

Array = Annotated[NDArray[np.generic], InArrayFile()]

Arrays = Mapping[str, Array]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class TensorSpec:
    """Name, static shape and numpy dtype name (``float32`` or ``int32``) of one input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def zeros(self) -> Array:
        """Return an array of zeros of this shape and dtype, for tracing."""
        return np.zeros(self.shape, dtype=self.dtype)


def save_tensors(arrays: Arrays, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write named arrays as safetensors. The order of several entries of ``metadata`` differs between runs.

    Raises:
        OutputError: the file could not be written completely.
    """
    try:
        save_file({name: np.asarray(value, order="C") for name, value in arrays.items()}, path, metadata)
    except (SafetensorError, OSError) as error:
        raise OutputError(f"{path.name} could not be written: {error}; nothing was kept. Is the disk full?") from error


def save_batches(batches: Sequence[Arrays], path: Path) -> None:
    """Write sets of named arrays to one safetensors file, with keys ``index/name``."""
    save_tensors(
        {f"{index}/{name}": value for index, batch in enumerate(batches) for name, value in batch.items()}, path
    )


def load_batches(path: Path) -> list[dict[str, Array]]:
    """Return the sets of arrays that :func:`save_batches` wrote."""
    batches: dict[int, dict[str, Array]] = {}
    for key, value in load_file(path).items():
        index, name = key.split("/", 1)
        batches.setdefault(int(index), {})[name] = value
    return [batches[index] for index in sorted(batches)]


def joined(arrays: Arrays) -> Array:
    """Return the only array; several arrays flattened and concatenated in the order of their names."""
    if len(arrays) == 1:
        (value,) = arrays.values()
        return value
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def only_output(outputs: Arrays) -> Array:
    """Return the output of a component with a single output."""
    (value,) = outputs.values()
    return value


def select(arrays: Arrays, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Return the arrays that ``specs`` name, in their order; inputs for a style are zeros without a style."""
    lacking = {spec.name: spec.zeros() for spec in specs if is_style_input(spec.name) and spec.name not in arrays}
    return {spec.name: arrays[spec.name] if spec.name in arrays else lacking[spec.name] for spec in specs}


def is_style_input(name: str) -> bool:
    """Whether an artifact's input is for a style that the app chooses."""
    return name.startswith(INPUT_PREFIX)


# The largest input of any artifact, a 768² picture, has 7 MB.
_LARGEST: Final = 1 << 30


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` file by name; never unpickles.

    Raises:
        UsageError: the file does not exist, or is not an .npz file of plain arrays.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist; --inputs takes an .npz file with one array per input")
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path} is not an .npz file; write an array per input: numpy.savez(path, name=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(item.file_size for item in archive.zip.infolist()) > _LARGEST:
                raise UsageError(f"{path} unpacks to more than {_LARGEST:,} bytes; --inputs takes one array per input")
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError, MemoryError) as error:
        raise UsageError(f"{path} is not an .npz file of plain arrays: {error}") from error


def write_npz(path: Path, arrays: Arrays) -> None:
    """Write named arrays to an ``.npz`` file atomically."""
    content = io.BytesIO()
    np.savez(content, **dict(arrays))  # type: ignore[arg-type]  # stubs take allow_pickle for one of the names
    write_whole(path, content.getvalue())


class Runner(Protocol):
    """A component that can be executed, such as an artifact loaded in its runtime."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once and return the outputs; names, shapes and dtypes are those of the manifest.

        Raises:
            RuntimeFault: the runtime refused the artifact or the inputs.
        """
        ...


@runtime_checkable
class WatchedRunner(Runner, Protocol):
    """A runner that also checks values inside the artifact."""

    def hazards(self) -> tuple[str, ...]:
        """Return one line for each problem in the runs so far, even if the outputs look right."""
        ...


def check_arrays(name: str, specs: Sequence[TensorSpec], arrays: Arrays, what: str = "input") -> None:
    """Raise RuntimeFault for missing or extra arrays, and for wrong shapes or dtypes.

    Args:
        name: name of the artifact, for the message.
        specs: expected arrays.
        arrays: given arrays.
        what: ``input`` or ``output``, for the message.

    Raises:
        RuntimeFault: the first difference.
    """
    wanted = {spec.name: spec for spec in specs}
    if set(arrays) != set(wanted):
        raise RuntimeFault(f"{name} has the {what}s {', '.join(wanted)}; it was given {', '.join(arrays) or 'none'}")
    for key, spec in wanted.items():
        shape, dtype = tuple(arrays[key].shape), str(arrays[key].dtype)
        if (shape, dtype) != (spec.shape, spec.dtype):
            raise RuntimeFault(f"{name}: {what} {key} must be {spec.dtype}{list(spec.shape)}, not {dtype}{list(shape)}")
