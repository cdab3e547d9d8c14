"""Execute a saved .tflite file in LiteRT's interpreter with XNNPACK, or in another runtime of the format."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.errors import MissingExtraError, RuntimeFault, UsageError, raised_as
from md_export.spec.tensors import Array, Arrays, TensorSpec, check_arrays
from md_export.system.workspace import scratch_folder

THREADS: Final = 2
OWN: Final = "litert"
# AUTO applies XNNPACK, the default of both libraries.
_KERNELS: Final = (
    ("", "AUTO", "XNNPACK"),
    ("-builtin", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "optimized, without XNNPACK"),
    ("-reference", "BUILTIN_REF", "reference"),
)
LIBRARIES: Final = (OWN, "tensorflow")
# Vtable offset of the field in the table SubGraph of LiteRT's schema.
_OUTPUTS: Final = 8


@dataclass(frozen=True)
class Runtime:
    """One library with one set of kernels.

    Attributes:
        name: value of ``--runtime``.
        library: ``litert`` or ``tensorflow``.
        resolver: member of the library's ``OpResolverType``.
        kernels: name of the kernels in words.
    """

    name: str
    library: str
    resolver: str
    kernels: str

    def require(self) -> None:
        """Raise :class:`MissingExtraError` if the library is not installed; imports nothing."""
        if self.library != OWN and importlib.util.find_spec(self.library) is None:
            raise MissingExtraError(
                f"the runtime {self.name} needs {self.library}, which is not installed: "
                f"pip install 'md-export[{self.library}]'"
            )

    def interpreter(self, path: Path) -> Any:
        """Return the library's interpreter of a file, before its tensors are allocated.

        Raises:
            MissingExtraError: the library is not installed.
            RuntimeError, ValueError: the library's errors for a file that it cannot read.
        """
        self.require()
        interpreter, resolvers = _tensorflow() if self.library == "tensorflow" else _litert()
        with warnings.catch_warnings():
            # TensorFlow warns that its interpreter is deprecated, but apps still ship it.
            warnings.simplefilter("ignore")
            return interpreter(
                model_path=str(path), num_threads=THREADS, experimental_op_resolver_type=resolvers[self.resolver]
            )


def _litert() -> tuple[Any, Any]:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter, OpResolverType


def _tensorflow() -> tuple[Any, Any]:
    import tensorflow as tf

    return tf.lite.Interpreter, tf.lite.experimental.OpResolverType


RUNTIMES: Final[Mapping[str, Runtime]] = {
    f"{library}{suffix}": Runtime(f"{library}{suffix}", library, resolver, kernels)
    for library in LIBRARIES
    for suffix, resolver, kernels in _KERNELS
}


def runtimes_of(library: str) -> tuple[Runtime, ...]:
    """Return all sets of kernels of a library, the default one first."""
    return tuple(runtime for runtime in RUNTIMES.values() if runtime.library == library)


class TfliteRunner:
    """One loaded file with exactly one signature; inputs and outputs go by the signature's names."""

    def __init__(self, path: Path, interpreter: Any, signature: str) -> None:
        self._path = path
        # The signature runner does not keep its interpreter alive.
        self._interpreter = interpreter
        self._signature = interpreter.get_signature_runner(signature)
        self.inputs = _specs(self._signature.get_input_details())
        self.outputs = _specs(self._signature.get_output_details())

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once.

        Args:
            inputs: every input of :attr:`inputs` by name, in its shape and dtype.

        Returns:
            New arrays, one per name of :attr:`outputs`.

        Raises:
            RuntimeFault: a name, shape or dtype differs from the file's, or an op failed.
        """
        check_arrays(self._path.name, self.inputs, inputs)
        with raised_as(RuntimeFault, f"{self._path.name}: an op failed", (RuntimeError, ValueError)):
            outputs = self._signature(**{name: np.ascontiguousarray(value) for name, value in inputs.items()})
        return {spec.name: outputs[spec.name] for spec in self.outputs}


def load(path: Path, runtime: str | None = None) -> TfliteRunner:
    """Open a .tflite file on the CPU; the runtime verifies its tables before it uses them.

    Args:
        path: the file.
        runtime: a name from RUNTIMES; by default LiteRT with XNNPACK.

    Raises:
        RuntimeFault: the file is missing or damaged, has no single signature, or an op is unknown.
        MissingExtraError: the runtime is not installed.
        UsageError: the runtime is unknown.
    """
    chosen = RUNTIMES.get(runtime or OWN)
    if chosen is None:
        raise UsageError(f"{path.name} runs in {', '.join(RUNTIMES)}, not in {runtime!r}")
    what = f"{path.name} cannot be loaded by {chosen.name}"
    with raised_as(RuntimeFault, what, (RuntimeError, ValueError), then="; export it again"):
        interpreter = chosen.interpreter(path)
        interpreter.allocate_tensors()
    signatures = list(interpreter.get_signature_list())
    if len(signatures) != 1:
        raise RuntimeFault(f"{path.name} has {len(signatures)} signatures; exactly one can be run")
    return TfliteRunner(path, interpreter, signatures[0])


def _specs(details: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    items: Iterable[tuple[str, Mapping[str, Any]]] = sorted(details.items())
    return tuple(
        TensorSpec(name, tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name)
        for name, detail in items
    )


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute in LiteRT with XNNPACK, and return the named values; int8 values are decoded to float32.

    LiteRT can keep every value without XNNPACK, but then its CONV_2D (ai-edge-litert 2.3.0) ignores the padding if the
    filter is as large as the map.

    Raises:
        RuntimeFault: LiteRT refuses the file or the inputs.
    """
    from ai_edge_litert.interpreter import Interpreter

    with scratch_folder() as scratch:
        opened = scratch / path.name
        shutil.copyfile(path, opened)
        _give(opened, [int(name) for name in names])
        with raised_as(RuntimeFault, f"{path.name}: LiteRT failed", (RuntimeError, ValueError, KeyError)):
            interpreter = Interpreter(model_path=str(opened), num_threads=THREADS)
            interpreter.allocate_tensors()
            (signature,) = interpreter.get_signature_list()
            for name, detail in interpreter.get_signature_runner(signature).get_input_details().items():
                interpreter.set_tensor(detail["index"], np.ascontiguousarray(inputs[name]))
            interpreter.invoke()
        details = {str(detail["index"]): detail for detail in interpreter.get_tensor_details()}
        return {name: _float(interpreter.get_tensor(int(name)), *details[name]["quantization"]) for name in names}


def _give(path: Path, tensors: list[int]) -> None:
    """Make tensors outputs, in place: append a new list to the file, and point the graph's table to it."""
    with path.open("r+b") as file:
        content = file.read()
        graph = schema.Model.GetRootAs(content).Subgraphs(0)
        outputs = sorted({*tensors, *(int(index) for index in graph.OutputsAsNumpy())})
        field = graph._tab.Pos + graph._tab.Offset(_OUTPUTS)
        start = len(content) + -len(content) % 4
        file.seek(start)
        file.write(struct.pack(f"<{len(outputs) + 1}i", len(outputs), *outputs))
        file.seek(field)
        file.write(struct.pack("<I", start - field))


def _float(value: Array, scale: float, zero: int) -> Array:
    real = value.astype(np.float32)
    return (real - np.float32(zero)) * np.float32(scale) if scale else real
