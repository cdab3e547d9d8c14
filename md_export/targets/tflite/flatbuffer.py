"""The tables of a .tflite file: read without running it, constants decoded, metadata, and a changed graph written."""

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
# The exporter appends a counter to names that repeat and joins the names of fused ops; both after this.
END: Final = ";"
_ANONYMOUS: Final = "arith."
IDENTIFIER: Final = b"TFL3"
# What flatbuffers' Python reader raises on offsets and lengths that lead out of the file.
MALFORMED: Final = (struct.error, ValueError, IndexError, KeyError, TypeError, AttributeError)
# Names of numpy's types, and ``int4``, two to a byte, which numpy has not.
DTYPES: Final = {
    getattr(schema.TensorType, name.upper()): name
    for name in ("float32", "float16", "int32", "int64", "int8", "int4", "uint8", "int16", "bool")
}
_OPERATORS: Final[dict[int, str]] = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
# Ops with a weight, and the operand that holds it.
WEIGHTED: Final = {
    "FULLY_CONNECTED": 1,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 1,
    "TRANSPOSE_CONV": 1,
    "EMBEDDING_LOOKUP": 1,
}
# The operand that holds the values, where it is not the first.
_VALUES: Final = {"TRANSPOSE_CONV": 2}
_FORM: Final = TypeAdapter(dict[str, str])


@contextmanager
def module_paths_as_names(root: str) -> Iterator[None]:
    """Make litert_torch name tensors ``<module path>;``, and ``root;`` where the path is empty."""
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
    """The torch module to which a weighted op belongs, from its weight's and its output's tensor names.

    An op that was fused with its neighbours, or a constant that was shared, has the names of all of
    them: the weight's own module comes last. The exporter renames an embedding table.
    """
    paths = modules_in(output if weight.startswith(_ANONYMOUS) else weight)
    return paths[-1] if paths else output


def modules_in(tensor: str) -> list[str]:
    """Return the parts that a tensor's name joins: module paths, or a name that the exporter chose."""
    return [part for part in tensor.split(END) if part and not part.isdigit()]


def exactly(outputs: Iterable[str]) -> str:
    """A regular expression for ai_edge_quantizer's op scopes that finds these ops, one at least.

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
        dtype: in which the weight is stored, a name of :data:`DTYPES`.
        takes: that of the values which it is applied to.
    """

    operator: str
    module: str
    output: str
    dtype: str
    takes: str


def read_model(path: Path) -> Any:
    """Parse ``path``; weights stay in the file (memory-mapped), whatever their size.

    Returns:
        the schema's ``ModelT``, every constant's bytes in its buffer's ``data``, also those that the
        quantizer keeps behind the tables.

    Raises:
        RuntimeFault: the file is missing, no .tflite file, truncated or corrupted.
    """
    what = f"{path.name}: cannot be read as a .tflite file"
    with raised_as(RuntimeFault, what, (OSError, ValueError)), path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if content[4:8] != IDENTIFIER:
        raise RuntimeFault(f"{path.name}: no .tflite file (its identifier is not {IDENTIFIER.decode()})")
    with raised_as(RuntimeFault, f"{path.name}: truncated or corrupted", MALFORMED, then="; export it again"):
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        for buffer in model.buffers:
            if buffer.offset:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    return model


def operator_name(model: Any, operator: Any) -> str:
    """``CONV_2D``, …; ops above 127 are kept in the newer of the two code fields."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def kind_of(model: Any, operator: Any) -> str:
    """Return an operation's name; a composite's with what it computes: ``STABLEHLO_COMPOSITE odml.rms_norm``."""
    name = operator_name(model, operator)
    function = getattr(operator.builtinOptions2, "name", None) if name == "STABLEHLO_COMPOSITE" else None
    return f"{name} {function.decode(errors='replace')}" if function else name


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Static shape; ``()`` for a scalar, which the schema stores as nothing."""
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def data_of(model: Any, tensor: Any) -> NDArray[np.uint8]:
    """Raw bytes of a constant; empty for a tensor that is computed."""
    data = model.buffers[tensor.buffer].data
    return np.empty(0, np.uint8) if data is None else np.asarray(data, np.uint8)


def weighted_ops(model: Any) -> list[WeightedOp]:
    """Ops whose weight is a constant, seen through the DEQUANTIZE of a float16 or weight-only integer one."""
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
    """One constant.

    Attributes:
        dtype: in which it is stored.
        values: float32 of what is stored in float16, or in integers with a scale; else as stored.
        steps: scales of integers, laid along their axis; None without scales.
    """

    dtype: str
    values: Array
    steps: Float32 | None


def decode(model: Any, tensor: Any) -> Decoded:
    """A constant of the ``ModelT`` that ``read_model`` gives.

    Raises:
        RuntimeFault: it is stored in a way that is not read here.
        ValueError: it has fewer bytes than its shape says.
    """
    dtype, scheme, shape = DTYPES.get(tensor.type), tensor.quantization, shape_of(tensor)
    if dtype is None or (scheme is not None and scheme.details is not None):
        raise RuntimeFault(f"{tensor.name.decode()}: stored in a type that is not read here; export it in another one")
    raw = data_of(model, tensor)
    plain: Array = (_nibbles(raw)[: prod(shape)] if dtype == "int4" else raw.view(dtype)).reshape(shape)
    if scheme is None or scheme.scale is None or not len(scheme.scale):
        return Decoded(dtype, plain.astype(np.float32) if dtype == "float16" else plain, None)
    steps = along(scheme.scale, plain.ndim, scheme.quantizedDimension)
    zero = 0 if scheme.zeroPoint is None else along(scheme.zeroPoint, plain.ndim, scheme.quantizedDimension)
    return Decoded(dtype, (plain.astype(np.float32) - zero) * steps, steps)


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Two's complement of 4 bits, the lower half of each byte first."""
    halves = np.stack([raw << 4, raw], axis=-1).view(np.int8).reshape(-1)
    return halves >> 4


def signature_entry(name: str, tensor: int) -> Any:
    """A tensor of the first graph as an input or output of the signature."""
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def write_rewired(model: Any, path: Path) -> None:
    """Write a model that ``read_model`` gave; constants that no op of its first graph reads are left out."""
    _keep_constants(model, model.subgraphs[0])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    path.write_bytes(builder.Output())


def _keep_constants(model: Any, graph: Any) -> None:
    """Drop the bytes of constants that no op is left to read; write the others inside the tables."""
    read = {index for operator in graph.operators for index in operator.inputs if index >= 0}
    kept = {graph.tensors[index].buffer: data_of(model, graph.tensors[index]) for index in read}
    for number, buffer in enumerate(model.buffers):
        buffer.offset = buffer.size = 0
        buffer.data = kept[number] if number in kept and kept[number].size else None
    model.metadata = None


def attach_notes(converted: Any, notes: Mapping[str, str]) -> None:
    """Have a converted model's exporter write the notes; its weights are not touched.

    The exporter writes each string of the module's ``tfl.metadata`` as an entry (flatbuffer_export.cc,
    ``CreateMetadataVector``), and the quantizer keeps entries. litert_torch has no argument for it, hence the
    reach for its exporter's module. Editing the file instead would hold all of it in memory.
    """
    from litert_converter.mlir import ir

    if not notes:
        return
    module = converted._exporter.module.operation
    text = json.dumps(notes, sort_keys=True, separators=(",", ":"))
    with module.context:
        module.attributes["tfl.metadata"] = ir.DictAttr.get({METADATA: ir.StringAttr.get(text)})


def read_notes(model: Any) -> dict[str, str]:
    """Return the notes that :func:`attach_notes` wrote, from the ``ModelT`` of ``read_model``; empty if it has none.

    Raises:
        ValueError: the entry is no JSON object of strings.
    """
    for entry in model.metadata or ():
        if entry.name == METADATA.encode():
            data = model.buffers[entry.buffer].data
            return _FORM.validate_json(np.asarray([] if data is None else data, np.uint8).tobytes())
    return {}
