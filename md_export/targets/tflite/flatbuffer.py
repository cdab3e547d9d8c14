"""Tables of a .tflite file: read them, decode constants, read and write metadata, and write a changed graph."""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from pydantic import TypeAdapter

from md_export.errors import RuntimeFault, raised_as
from md_export.spec.tensors import Array
from md_export.system.vendors import replaced
from md_export.targets.contract import METADATA
from md_export.targets.stored import Float32, along

# Attribute under which the lowered wrapper holds the component.
COMPONENT: Final = "component"
# Separator after a name: the exporter appends a counter to repeated names and joins the names of fused ops after it.
END: Final = ";"
_ANONYMOUS: Final = "arith."
IDENTIFIER: Final = b"TFL3"
# Errors of flatbuffers' Python reader for offsets and lengths outside the file.
MALFORMED: Final = (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError)
# Names of numpy's types, and ``int4``, two values per byte, which numpy lacks.
DTYPES: Final = {
    getattr(schema.TensorType, name.upper()): name
    for name in ("float32", "float16", "int32", "int64", "int8", "int4", "uint8", "int16", "bool")
}
_OPERATORS: Final[dict[int, str]] = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
# Ops with a weight, and the position of the weight operand.
WEIGHTED: Final = {
    "FULLY_CONNECTED": 1,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "TRANSPOSE_CONV": 1,
    "EMBEDDING_LOOKUP": 1,
}
# Position of the data operand, if it is not the first.
_VALUES: Final = {"TRANSPOSE_CONV": 2}
_FORM: Final = TypeAdapter(dict[str, str])


@contextmanager
def module_paths_as_names(root: str) -> Iterator[None]:
    """Within the block, make litert_torch name tensors ``<module path>;``, and ``root;`` for an empty path."""
    from litert_torch.backend import debuginfo

    def path_of(node: Any) -> str | None:
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return None
        path, _ = list(stack.values())[-1]
        return (path.removeprefix(COMPONENT).removeprefix(".") or root) + END

    with replaced(debuginfo, "build_mlir_debuginfo", path_of):
        yield


def module_of(weight: str, output: str) -> str:
    """Return the torch module of a weighted op, from the tensor names of its weight and its output.

    A fused op or a shared constant has the names of all its modules: the owner of the weight is the last.
    The exporter renames an embedding table.
    """
    paths = modules_in(output if weight.startswith(_ANONYMOUS) else weight)
    return paths[-1] if paths else output


def modules_in(tensor: str) -> list[str]:
    """Return the parts that a tensor's name joins: module paths, or a name that the exporter chose."""
    return [part for part in tensor.split(END) if part and not part.isdigit()]


def exactly(outputs: Iterable[str]) -> str:
    """Return a regular expression for ai_edge_quantizer's op scopes that matches exactly these ops, at least one.

    A scope is the op's output tensor name followed by a semicolon.
    """
    return f"^(?:{'|'.join(sorted(re.escape(name) for name in outputs))}){END}$"


@dataclass(frozen=True)
class WeightedOp:
    """One op with a stored weight.

    Attributes:
        operator: ``CONV_2D``, ….
        module: path of the torch module that it computes.
        output: name of its output tensor.
        dtype: stored dtype of the weight, a name of :data:`DTYPES`.
        takes: dtype of the data operand.
    """

    operator: str
    module: str
    output: str
    dtype: str
    takes: str


def read_model(path: Path) -> Any:
    """Parse ``path``; weights of any size stay in the file (memory-mapped).

    Returns:
        The schema's ``ModelT``, with every constant's bytes in its buffer's ``data``, also those that the
        quantizer stores behind the tables.

    Raises:
        RuntimeFault: the file is missing, is not a .tflite file, or is truncated or corrupted.
    """
    what = f"{path.name}: cannot be read as a .tflite file"
    with raised_as(RuntimeFault, what, (OSError, ValueError)), path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if content[4:8] != IDENTIFIER:
        raise RuntimeFault(f"{path.name}: not a .tflite file (its identifier is not {IDENTIFIER.decode()})")
    with raised_as(RuntimeFault, f"{path.name}: truncated or corrupted", MALFORMED, then="; export it again"):
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        for buffer in model.buffers:
            if buffer.offset:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    return model


def operator_name(model: Any, operator: Any) -> str:
    """Return an op's name, such as ``CONV_2D``; ops above 127 are stored in the newer of the two code fields."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def kind_of(model: Any, operator: Any) -> str:
    """Return an operation's name; for a composite with its function: ``STABLEHLO_COMPOSITE odml.rms_norm``."""
    name = operator_name(model, operator)
    function = getattr(operator.builtinOptions2, "name", None) if name == "STABLEHLO_COMPOSITE" else None
    return f"{name} {function.decode(errors='replace')}" if function else name


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the static shape; ``()`` for a scalar, which has no shape in the schema."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def data_of(model: Any, tensor: Any) -> NDArray[np.uint8]:
    """Return the raw bytes of a constant; empty for a computed tensor."""
    data = model.buffers[tensor.buffer].data
    return np.empty(0, np.uint8) if data is None else np.asarray(data, np.uint8)


def weighted_ops(model: Any) -> list[WeightedOp]:
    """Return the ops with a constant weight, also after the DEQUANTIZE of a float16 or weight-only integer weight."""
    return [op for graph in model.subgraphs for op in _weighted(model, graph)]


def _weighted(model: Any, graph: Any) -> Iterator[WeightedOp]:
    named = [(operator_name(model, operator), operator) for operator in graph.operators]
    source = {operator.outputs[0]: operator.inputs[0] for name, operator in named if name == "DEQUANTIZE"}
    for name, operator in named:
        if name not in WEIGHTED:
            continue
        index = operator.inputs[WEIGHTED[name]]
        weight = graph.tensors[source.get(index, index)]
        output = graph.tensors[operator.outputs[0]].name.decode()
        if data_of(model, weight).size:
            module = module_of(weight.name.decode(), output)
            value = graph.tensors[operator.inputs[_VALUES.get(name, 0)]]
            yield WeightedOp(name, module, output, DTYPES.get(weight.type, "other"), DTYPES.get(value.type, "other"))


@dataclass(frozen=True)
class Decoded:
    """One decoded constant.

    Attributes:
        dtype: stored dtype.
        values: float32 if stored in float16 or in integers with a scale; else as stored.
        steps: scales of integers along their axis; None without scales.
    """

    dtype: str
    values: Array
    steps: Float32 | None


def decode(model: Any, tensor: Any) -> Decoded:
    """Decode a constant of ``read_model``'s ``ModelT``.

    Raises:
        RuntimeFault: its stored type is not supported.
        ValueError: it has fewer bytes than its shape needs.
    """
    dtype, scheme, shape = DTYPES.get(tensor.type), tensor.quantization, shape_of(tensor)
    if dtype is None or (scheme is not None and scheme.details is not None):
        raise RuntimeFault(f"{tensor.name.decode()}: its stored type is not supported; export it in another one")
    raw = data_of(model, tensor)
    plain: Array = (_nibbles(raw)[: prod(shape)] if dtype == "int4" else raw.view(dtype)).reshape(shape)
    if scheme is None or scheme.scale is None or not len(scheme.scale):
        return Decoded(dtype, plain.astype(np.float32) if dtype == "float16" else plain, None)
    steps = along(scheme.scale, plain.ndim, scheme.quantizedDimension)
    zero = 0 if scheme.zeroPoint is None else along(scheme.zeroPoint, plain.ndim, scheme.quantizedDimension)
    return Decoded(dtype, (plain.astype(np.float32) - zero) * steps, steps)


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Unpack 4-bit integers in two's complement, the lower half of each byte first."""
    halves = np.stack([raw << 4, raw], axis=-1).view(np.int8).reshape(-1)
    return halves >> 4


def signature_entry(name: str, tensor: int) -> Any:
    """Return the signature's entry for a tensor of the first graph, as an input or output."""
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def write_rewired(model: Any, path: Path) -> None:
    """Write a model of ``read_model``, without constants that no op of its first graph reads."""
    _keep_constants(model, model.subgraphs[0])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    path.write_bytes(builder.Output())


def _keep_constants(model: Any, graph: Any) -> None:
    """Drop the bytes of constants that no op reads any more; keep the others inside the tables."""
    read = {index for operator in graph.operators for index in operator.inputs if index >= 0}
    kept = {graph.tensors[index].buffer: data_of(model, graph.tensors[index]) for index in read}
    for number, buffer in enumerate(model.buffers):
        buffer.offset = buffer.size = 0
        buffer.data = kept[number] if number in kept and kept[number].size else None
    model.metadata = None


def attach_notes(converted: Any, notes: Mapping[str, str]) -> None:
    """Make a converted model's exporter write the metadata, without copying its weights.

    The exporter writes each string of the module's ``tfl.metadata`` as an entry (flatbuffer_export.cc,
    ``CreateMetadataVector``), and the quantizer keeps entries. litert_torch has no argument for it, so its
    exporter's module is changed. Editing the file instead would load all of it into memory.
    """
    from litert_converter.mlir import ir

    if not notes:
        return
    module = converted._exporter.module.operation
    text = json.dumps(notes, sort_keys=True, separators=(",", ":"))
    with module.context:
        module.attributes["tfl.metadata"] = ir.DictAttr.get({METADATA: ir.StringAttr.get(text)})


def read_notes(model: Any) -> dict[str, str]:
    """Return the metadata that :func:`attach_notes` wrote, from ``read_model``'s ``ModelT``; empty if it has none.

    Raises:
        ValueError: the entry is not a JSON object of strings.
    """
    for entry in model.metadata or ():
        if entry.name == METADATA.encode():
            data = model.buffers[entry.buffer].data
            return _FORM.validate_json(np.asarray([] if data is None else data, np.uint8).tobytes())
    return {}
