"""Constants of a saved .tflite file: decode them one at a time, and change them for the self-test of verification."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from md_export.errors import RuntimeFault, raised_as
from md_export.spec.scheme import QuantScheme
from md_export.targets.stored import LEVELS, Constant, Float32, Grid, Role, StoredWeight, Use
from md_export.targets.tflite import flatbuffer
from md_export.targets.tflite.weights import is_promised

# Axes of a weight in the file → torch's [out, in, height, width]; [in, out, …] for a transposed convolution.
_LAYOUTS: Final = {
    "CONV_2D": (0, 3, 1, 2),
    "DEPTHWISE_CONV_2D": (3, 0, 1, 2),
    "TRANSPOSE_CONV": (3, 0, 1, 2),
}
_ROLES: Final[dict[tuple[str, int], Role]] = {
    **dict.fromkeys(flatbuffer.WEIGHTED.items(), "weight"),
    **{(name, 2): "bias" for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")},
    ("MUL", 1): "weight",
    ("ADD", 1): "bias",
}
# Initial size: a flatbuffer is written from its end, and the builder grows by doubling.
_FIRST_BYTES: Final = 1 << 20
_NARROW: Final = (schema.TensorType.INT8, schema.TensorType.INT4)


class _Reader(NamedTuple):
    """An operator, the position of the input that reads a tensor, and the name of its output."""

    kind: str
    position: int
    output: str


def stored_weights(path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
    """Yield every constant, decoded.

    Raises:
        RuntimeFault: the file is not a .tflite file.
    """
    model = flatbuffer.read_model(path)
    seen: set[int] = set()
    with raised_as(RuntimeFault, f"{path.name}: corrupted", flatbuffer.MALFORMED, then="; export it again"):
        for graph in model.subgraphs:
            readers = _readers(model, graph)
            for index, tensor in enumerate(graph.tensors):
                if flatbuffer.data_of(model, tensor).size:
                    yield _weight(model, tensor, readers[index], scheme, is_first=tensor.buffer not in seen)
                    seen.add(tensor.buffer)


def _readers(model: Any, graph: Any) -> dict[int, list[_Reader]]:
    """Return the readers of each tensor, also after the DEQUANTIZE of a float16 or weight-only integer tensor."""
    readers: dict[int, list[_Reader]] = defaultdict(list)
    named = [(flatbuffer.operator_name(model, operator), operator) for operator in graph.operators]
    source = {operator.outputs[0]: operator.inputs[0] for name, operator in named if name == "DEQUANTIZE"}
    for name, operator in named:
        for position, index in enumerate(operator.inputs):
            if name != "DEQUANTIZE":
                output = graph.tensors[operator.outputs[0]].name.decode()
                readers[source.get(index, index)].append(_Reader(name, position, output))
    return readers


def _weight(model: Any, tensor: Any, readers: list[_Reader], scheme: QuantScheme, is_first: bool) -> StoredWeight:
    name, raw = tensor.name.decode(), flatbuffer.data_of(model, tensor)
    found = (
        flatbuffer.decode(model, tensor) if tensor.type in flatbuffer.DTYPES else flatbuffer.Decoded("other", raw, None)
    )
    dtype, steps = found.dtype, found.steps if found.dtype in LEVELS else None
    weighted = [reader for reader in readers if flatbuffer.WEIGHTED.get(reader.kind) == reader.position]
    layout = next((_LAYOUTS[reader.kind] for reader in weighted if reader.kind in _LAYOUTS), None)
    scales = {} if steps is None else {"float32": steps.nbytes}
    return StoredWeight(
        name=name,
        dtype=dtype,
        # In the quantizer's files, equal constants share a buffer.
        parts={dtype: raw.nbytes, **scales} if is_first else scales,
        values=_as_torch(found.values.astype(np.float32, copy=False), layout),
        uses=tuple(dict.fromkeys(_use(name, reader) for reader in readers)),
        half=dtype == "float16",
        promised=any(_is_promised(name, reader, scheme) for reader in weighted),
        grid=None if steps is None else Grid(_as_torch(steps, layout), LEVELS[dtype]),
    )


def _is_promised(name: str, reader: _Reader, scheme: QuantScheme) -> bool:
    return is_promised(reader.kind, scheme.for_module(flatbuffer.module_of(name, reader.output)))


def _use(name: str, reader: _Reader) -> Use:
    named = flatbuffer.END in name
    modules = (flatbuffer.module_of(name, reader.output),) if named else tuple(flatbuffer.modules_in(reader.output))
    return Use(modules, _ROLES.get((reader.kind, reader.position), ""))


def _as_torch(values: Float32, layout: tuple[int, ...] | None) -> Float32:
    return values if layout is None or values.ndim != len(layout) else values.transpose(layout)


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Yield the constants in the order in which ops read them; changes in place are saved at the end."""
    content = bytearray(path.read_bytes())
    model = schema.Model.GetRootAs(content, 0)
    yield [constant for index in range(model.SubgraphsLength()) for constant in _constants(model, content, index)]
    path.write_bytes(content)


def _constants(model: Any, content: bytearray, subgraph: int) -> Iterator[Constant]:
    graph = model.Subgraphs(subgraph)
    operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
    taken = dict.fromkeys(int(item) for operator in operators for item in operator.InputsAsNumpy() if item >= 0)
    for index in taken:
        tensor = graph.Tensors(index)
        raw = _bytes_of(model.Buffers(tensor.Buffer()), content)
        if not raw.size:
            continue
        name, dtype = f"{tensor.Name().decode()} #{index}", flatbuffer.DTYPES.get(tensor.Type())
        quantization = tensor.Quantization()
        is_packed = dtype in (None, "int4")
        yield Constant(name, "packed" if is_packed else "weight", raw if is_packed else raw.view(dtype))
        if dtype in ("int8", "int4") and quantization is not None and quantization.ScaleLength():
            yield Constant(f"{name} scale", "scale", quantization.ScaleAsNumpy())


def _bytes_of(buffer: Any, content: bytearray) -> NDArray[np.uint8]:
    """Return a view of a buffer's bytes; the quantizer stores large constants behind the tables."""
    if buffer.Offset():
        return np.frombuffer(content, np.uint8, buffer.Size(), buffer.Offset())
    return buffer.DataAsNumpy() if buffer.DataLength() else np.empty(0, np.uint8)


def store_as_float(path: Path) -> bool:
    """Store each int8 or int4 weight as its float32 values, like in a float file; return False without any."""
    model = flatbuffer.read_model(path)
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    weights = [tensor for tensor in tensors if tensor.type in _NARROW and flatbuffer.data_of(model, tensor).size]
    for buffer in model.buffers:
        buffer.data, buffer.offset, buffer.size = None if buffer.data is None else np.array(buffer.data), 0, 0
    # Equal weights share a buffer.
    for tensor, values in [(tensor, flatbuffer.decode(model, tensor).values) for tensor in weights]:
        model.buffers[tensor.buffer].data = np.ascontiguousarray(values, np.float32).view(np.uint8).reshape(-1)
        tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
    builder = flatbuffers.Builder(_FIRST_BYTES)
    builder.Finish(model.Pack(builder), flatbuffer.IDENTIFIER)
    path.write_bytes(builder.Output())
    return bool(weights)
