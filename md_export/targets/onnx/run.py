"""Execute a saved ONNX file with onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from md_export.errors import RuntimeFault, UsageError
from md_export.tensors import Array, Arrays, TensorSpec

# onnxruntime's exceptions share no base class but Exception.
ORT_ERRORS: Final = tuple(
    getattr(ort_errors, name)
    for name in (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)
_ERRORS_ONLY = 3
UNOPTIMIZED: Final = "unoptimized"
_DTYPES: Final = {"tensor(float)": "float32", "tensor(int32)": "int32"}


class OnnxRunner:
    """An onnxruntime session with checked inputs."""

    def __init__(self, session: ort.InferenceSession, name: str) -> None:
        self._session = session
        self._name = name
        self.inputs = tuple(_spec(node, name) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, name) for node in session.get_outputs())

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once.

        Raises:
            RuntimeFault: an input is missing, unknown, or of another shape or dtype; onnxruntime failed.
        """
        _check(self._name, self.inputs, inputs)
        names = [spec.name for spec in self.outputs]
        feed = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        try:
            values = self._session.run(names, feed)
        except ORT_ERRORS as error:
            raise RuntimeFault(f"{self._name}: onnxruntime failed: {_line(error)}") from error
        return dict(zip(names, values, strict=True))


def load(path: Path, runtime: str | None = None) -> OnnxRunner:
    """Open an ``.onnx`` file (its ``.data`` file, if any, beside it).

    Args:
        path: the file.
        runtime: :data:`UNOPTIMIZED` for onnxruntime without its own changes to the graph.

    Raises:
        RuntimeFault: onnxruntime refuses the file.
        UsageError: another runtime is asked for.
    """
    if runtime not in (None, UNOPTIMIZED):
        raise UsageError(f"{path.name} runs in onnxruntime only; leave out the runtime {runtime!r}")
    options = session_options(optimized=runtime is None)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise RuntimeFault(
            f"{path.name} is no model that onnxruntime can run; export it again: {_line(error)}"
        ) from error
    return OnnxRunner(session, path.name)


def session_options(optimized: bool) -> ort.SessionOptions:
    """Errors only; without ``optimized`` the graph is executed node by node as it is written."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _spec(node: ort.NodeArg, name: str) -> TensorSpec:
    if node.type not in _DTYPES or not all(isinstance(size, int) for size in node.shape):
        raise RuntimeFault(f"{name}: {node.name} is {node.type}{node.shape}; artifacts hold static float32 or int32")
    return TensorSpec(node.name, tuple(node.shape), _DTYPES[node.type])


def _check(name: str, specs: tuple[TensorSpec, ...], inputs: Arrays) -> None:
    wanted = {spec.name for spec in specs}
    if set(inputs) != wanted:
        raise RuntimeFault(f"{name} takes {', '.join(sorted(wanted))}; it was given {', '.join(sorted(inputs))}")
    for spec in specs:
        value = inputs[spec.name]
        if value.shape != spec.shape or value.dtype.name != spec.dtype:
            raise RuntimeFault(
                f"{name}: {spec.name} must be {spec.dtype}{list(spec.shape)}, not {value.dtype.name}{list(value.shape)}"
            )


def _line(error: Exception) -> str:
    return str(error).strip().replace("\n", " ")
