"""Execute a saved ONNX file with onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from md_export.errors import RuntimeFault, UsageError, one_line
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets.inputs import check_inputs
from md_export.targets.onnx.fused import ORT_SUFFIX
from md_export.targets.onnx.rounding import rounded_graph
from md_export.targets.onnx.sessions import ORT_ERRORS, WEIGHTS_FOLDER, session_options

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
        check_inputs(self._name, self.inputs, inputs)
        names = [spec.name for spec in self.outputs]
        feed = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        try:
            values = self._session.run(names, feed)
        except ORT_ERRORS as error:
            raise RuntimeFault(f"{self._name}: onnxruntime failed: {one_line(error)}") from error
        return dict(zip(names, values, strict=True))


def load(path: Path, runtime: str | None = None) -> OnnxRunner:
    """Open an ``.onnx`` file (its ``.data`` file, if any, beside it) or an ``.ort`` file.

    Args:
        path: the file.
        runtime: :data:`UNOPTIMIZED` for onnxruntime without its own changes to the graph.

    A float16 graph is opened as it is, to see that onnxruntime takes it, and then executed with every result rounded to
    float16, as hardware does that computes in it: see :mod:`md_export.targets.onnx.rounding`.

    Raises:
        RuntimeFault: onnxruntime refuses the file.
        UsageError: another runtime is asked for.
    """
    if runtime not in (None, UNOPTIMIZED):
        raise UsageError(f"{path.name} runs in onnxruntime only; leave out the runtime {runtime!r}")
    options = session_options(optimized=runtime is None)
    runner = OnnxRunner(_session(path, str(path), options), path.name)
    rounded = None if path.suffix == ORT_SUFFIX else rounded_graph(path)
    if rounded is None:
        return runner
    del runner  # its copy of the weights
    return OnnxRunner(_session(path, rounded.SerializeToString(), options), path.name)


def _session(path: Path, content: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    if isinstance(content, bytes):
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise RuntimeFault(
            f"{path.name} is no model that onnxruntime can run; export it again: {one_line(error)}"
        ) from error


def _spec(node: ort.NodeArg, name: str) -> TensorSpec:
    if node.type not in _DTYPES or not all(isinstance(size, int) for size in node.shape):
        raise RuntimeFault(f"{name}: {node.name} is {node.type}{node.shape}; artifacts hold static float32 or int32")
    return TensorSpec(node.name, tuple(node.shape), _DTYPES[node.type])
