"""Execute a saved ONNX file with onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import ShapeInferencePass

from md_export.errors import RuntimeFault, UsageError, raised_as
from md_export.spec.tensors import Array, Arrays, TensorSpec, check_arrays
from md_export.targets.onnx.describe import read_graph, read_unfused
from md_export.targets.onnx.save import ORT_ERRORS, ORT_SUFFIX, WEIGHTS_FOLDER, session_options

_HALF: Final = ir.DataType.FLOAT16
_FLOAT: Final = ir.DataType.FLOAT
# Operators that only pass values on, which are already rounded.
_MOVING: Final = frozenset(
    ("Concat", "Gather", "Identity", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)
UNOPTIMIZED: Final = "unoptimized"
_DTYPES: Final = {"tensor(float)": "float32", "tensor(int32)": "int32"}
# Operators that onnxruntime's quantizer inserts; it names these nodes after tensors.
_INSERTED: Final = ("QuantizeLinear", "DequantizeLinear")
# On x86 without VNNI, onnxruntime's products of uint8 and int8 overflow 16 bits; phones and newer processors have no
# such overflow. This option selects its exact kernels there, and changes nothing elsewhere
# (onnxruntime_session_options_config_keys.h).
_EXACT_INT8: Final = "session.x64quantprecision"


def rounded_graph(path: Path) -> onnx.ModelProto | None:
    """Return the saved graph in float32 with every float16 result rounded to float16; None if it has no float16.

        y = MatMul(a, b)        in float16
        y = Cast(Cast(MatMul(Cast(a), Cast(b)), float16), float32)        sums in float32, the result rounded

    onnxruntime has float16 kernels for few operators on x86. It runs the others in float32, each between two casts that
    it inserts, and then drops every pair of adjacent casts, even with optimizations off
    (``RemoveDuplicateCastTransformer``): the results are hardly rounded, and nothing overflows. Casts that are in the
    graph are kept.

    Values keep their names. Weights beside the file stay there: open the session with
    :data:`md_export.targets.onnx.save.WEIGHTS_FOLDER`.

    Raises:
        RuntimeFault: the file is not an ONNX model.
    """
    model = ir.from_proto(read_graph(path))
    ir.external_data.set_base_dir(model.graph, path.parent)
    ShapeInferencePass()(model)
    halves = [value for node in model.graph for value in node.outputs if value.dtype == _HALF]
    if not halves:
        return None
    for constant in list(model.graph.initializers.values()):
        if constant.dtype == _HALF:
            _widen(model.graph, constant)
    for value in halves:
        _round(model.graph, value)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


def _widen(graph: ir.Graph, constant: ir.Value) -> None:
    uses = list(constant.uses())
    cast = _cast(constant, _FLOAT, f"{constant.name}.float32")
    graph.insert_before(graph[0], [cast])
    _redirect(uses, cast.outputs[0])


def _round(graph: ir.Graph, value: ir.Value) -> None:
    node, uses, name = value.producer(), list(value.uses()), value.name
    if node is None or node.op_type in _MOVING:
        value.dtype = _FLOAT
        return
    value.name = f"{name}.exact"
    if node.op_type == "Cast":
        casts = [_cast(value, _FLOAT, str(name))]
    else:
        value.dtype = _FLOAT
        narrow = _cast(value, _HALF, f"{name}.float16")
        casts = [narrow, _cast(narrow.outputs[0], _FLOAT, str(name))]
    graph.insert_after(node, casts)
    _redirect(uses, casts[-1].outputs[0])


def _redirect(uses: Iterable[tuple[ir.Node, int]], value: ir.Value) -> None:
    for node, position in uses:
        node.replace_input_with(position, value)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value})
    node.outputs[0].name, node.outputs[0].dtype = name, dtype
    return node


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
        check_arrays(self._name, self.inputs, inputs)
        names = [spec.name for spec in self.outputs]
        feed = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        with raised_as(RuntimeFault, f"{self._name}: onnxruntime failed", ORT_ERRORS):
            values = self._session.run(names, feed)
        return dict(zip(names, values, strict=True))


def load(path: Path, runtime: str | None = None) -> OnnxRunner:
    """Open an ``.onnx`` file (its ``.data`` file, if any, beside it) or an ``.ort`` file.

    Args:
        path: the file.
        runtime: :data:`UNOPTIMIZED` for onnxruntime without graph optimizations.

    A float16 graph is first opened unchanged, to check that onnxruntime accepts it, and then executed with every result
    rounded to float16, like on hardware that computes in float16: see :func:`rounded_graph`.

    Raises:
        RuntimeFault: onnxruntime refuses the file.
        UsageError: ``runtime`` names another runtime.
    """
    if runtime not in (None, UNOPTIMIZED):
        raise UsageError(f"{path.name} runs in onnxruntime only; leave out the runtime {runtime!r}")
    options = session_options(optimized=runtime is None)
    if path.suffix != ORT_SUFFIX and _has_int8_activations(path):
        options.add_session_config_entry(_EXACT_INT8, "1")
    runner = OnnxRunner(_session(path, str(path), options), path.name)
    rounded = None if path.suffix == ORT_SUFFIX else rounded_graph(path)
    if rounded is None:
        return runner
    del runner  # frees its copy of the weights
    return OnnxRunner(_session(path, rounded.SerializeToString(), options), path.name)


def _has_int8_activations(path: Path) -> bool:
    """Whether products read integers on both sides; onnxruntime's exact kernels refuse integer weights with floats."""
    return path.is_file() and any(node.op_type == "QuantizeLinear" for node in read_graph(path).graph.node)


def _session(path: Path, content: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    if isinstance(content, bytes):
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    with raised_as(RuntimeFault, f"onnxruntime cannot run {path.name}; export it again", ORT_ERRORS):
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _spec(node: ort.NodeArg, name: str) -> TensorSpec:
    if node.type not in _DTYPES or not all(isinstance(size, int) for size in node.shape):
        raise RuntimeFault(f"{name}: {node.name} is {node.type}{node.shape}; artifacts have static float32 or int32")
    return TensorSpec(node.name, tuple(node.shape), _DTYPES[node.type])


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute the graph without onnxruntime's optimizations, and return the named values as float32.

    Float16 values of the graph are rounded to float16: see :func:`rounded_graph`.

    Raises:
        RuntimeFault: onnxruntime refuses the graph or the inputs.
    """
    model = rounded_graph(path) or read_unfused(path)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = session_options(optimized=False)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    with raised_as(RuntimeFault, f"{path.name}: onnxruntime failed", (*ORT_ERRORS, ValueError)):
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(list(names), {name: np.ascontiguousarray(value) for name, value in inputs.items()})
    return {name: value.astype(np.float32) for name, value in zip(names, found, strict=True)}
