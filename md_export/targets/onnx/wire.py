"""Read and write ONNX files as bytes, with one weight in memory at a time.

protobuf's functions hold a model two or three times: as objects, as one string, as the file's content. Here a weight is
written directly from its storage, and on reading it stays in the file: the parsed model names the file itself as the
location of external data, which :mod:`onnx` and onnxruntime support.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final, NamedTuple, Protocol, runtime_checkable

import numpy as np
import onnx
import onnx_ir as ir

from md_export.system.memory import release_tensors

# Numbers of fields in onnx.proto.
_GRAPH: Final = 7  # of ModelProto
_INITIALIZER: Final = 5  # of GraphProto
_RAW_DATA: Final = 9  # of TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}
# Smaller weights are read with the graph: shapes, scales.
_SMALL: Final = 1024
_LONGEST_VARINT: Final = 10


class MalformedFileError(ValueError):
    """The bytes are not a protobuf message."""


@runtime_checkable
class _WritesItself(Protocol):
    """A tensor that can be written without a copy; torch's and onnx_ir's tensors can, onnx_ir's protocol lacks it."""

    def tofile(self, file: IO[bytes]) -> None: ...


class _Field(NamedTuple):
    """Position of a field in the file: ``start`` of its tag, and ``content``, the start of its content."""

    number: int
    wire: int
    start: int
    content: int
    end: int

    def holds(self, number: int) -> bool:
        """Whether the field has this number and contains a message or bytes."""
        return self.number == number and self.wire == _BYTES


def data_name(name: str) -> str:
    """Return the name of the file beside a model with the weights that are too large for it."""
    return f"{name}.data"


def write_inline(model: ir.Model, file: IO[bytes]) -> None:
    """Write a model with all its weights inside."""
    weights = _weights(model, 0)
    proto = _skeleton(model, weights)
    del proto.graph.initializer[:]
    heads = [_head(name, tensor) for name, tensor in weights.items()]
    sizes = [len(head) + tensor.nbytes for head, tensor in zip(heads, weights.values(), strict=True)]
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    file.write(proto.SerializeToString(deterministic=True))
    total = len(graph) + sum(len(_tag(_INITIALIZER, size)) + size for size in sizes)
    file.write(_tag(_GRAPH, total) + graph)
    for head, size, tensor in zip(heads, sizes, weights.values(), strict=True):
        file.write(_tag(_INITIALIZER, size) + head)
        ordered = in_order(tensor)
        if isinstance(ordered, _WritesItself):
            ordered.tofile(file)
        else:
            file.write(ordered.tobytes())
        release(tensor)


def in_order(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor with its values in the order of the file, a copy if it is a view such as a transposed weight.

    numpy writes a view one value at a time, which takes 35 ns for each.
    """
    values = tensor.raw
    if not isinstance(values, np.ndarray) or values.flags.c_contiguous:
        return tensor
    return ir.tensor(np.ascontiguousarray(values), dtype=tensor.dtype, name=tensor.name)


def release(tensor: ir.TensorProtocol) -> None:
    """Release the pages of a weight that lies in a checkpoint's mapped file."""
    # Import torch only if a tensor is torch's, because reading a graph does not need it.
    if (torch := sys.modules.get("torch")) is not None and isinstance(tensor.raw, torch.Tensor):
        release_tensors([tensor.raw])


def with_shapes(model: ir.Model) -> onnx.ModelProto:
    """Return the model as protobuf objects, with the shapes of all values.

    Weights of a kilobyte and more are placeholders: external data without a file.
    """
    return onnx.shape_inference.infer_shapes(_skeleton(model, _weights(model, _SMALL)))


def _weights(model: ir.Model, least: int) -> dict[str, ir.TensorProtocol]:
    """Return the initializers of at least so many bytes."""
    values = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: value for name, value in values.items() if value is not None and value.nbytes >= least}


def _skeleton(model: ir.Model, weights: Mapping[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """Return the model as protobuf objects, with placeholders for weights; the model's weights are restored."""
    initializers = model.graph.initializers
    try:
        for name, tensor in weights.items():
            shape = ir.Shape(tensor.shape.numpy())
            place = ir.ExternalTensor("-", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
            initializers[name].const_value = place
        proto: onnx.ModelProto = ir.to_proto(model)
    finally:
        for name, tensor in weights.items():
            initializers[name].const_value = tensor
    return proto


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """Return the bytes of a TensorProto before its values."""
    dims = [int(size) for size in tensor.shape.numpy()]
    proto = onnx.TensorProto(name=name, dims=dims, data_type=tensor.dtype.value)
    head: bytes = proto.SerializeToString(deterministic=True)
    return head + _tag(_RAW_DATA, tensor.nbytes)


def _tag(number: int, size: int) -> bytes:
    """Return the bytes in front of a field of ``size`` bytes."""
    return _varint(number << 3 | _BYTES) + _varint(size)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(parts) + bytes([value])


def read_without_weights(path: Path) -> onnx.ModelProto:
    """Parse a model; weights of more than a kilobyte stay in the file.

    Raises:
        MalformedFileError, DecodeError: the file is not a protobuf message.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise MalformedFileError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            model = _model(content, path.name)
    _check_text(model)
    return model


def _check_text(model: onnx.ModelProto) -> None:
    """Refuse text that is not UTF-8, because protobuf returns it as bytes."""
    graph = model.graph
    names = [item.name for part in (graph.initializer, graph.input, graph.output, graph.value_info) for item in part]
    names += [name for node in graph.node for name in (node.name, node.op_type, node.domain, *node.input, *node.output)]
    names += [text for item in model.metadata_props for text in (item.key, item.value)]
    broken = next((name for name in names if not isinstance(name, str)), None)
    if broken is not None:
        raise MalformedFileError(f"{broken!r:.40} is not text")


def _model(content: mmap.mmap, name: str) -> onnx.ModelProto:
    fields = list(_fields(content, 0, len(content)))
    model = onnx.ModelProto()
    model.ParseFromString(_joined(content, [field for field in fields if not field.holds(_GRAPH)]))
    for graph in (field for field in fields if field.holds(_GRAPH)):
        parts = list(_fields(content, graph.content, graph.end))
        model.graph.MergeFromString(_joined(content, [part for part in parts if not part.holds(_INITIALIZER)]))
        model.graph.initializer.extend(_weight(content, part, name) for part in parts if part.holds(_INITIALIZER))
    return model


def _weight(content: mmap.mmap, field: _Field, name: str) -> onnx.TensorProto:
    parts = list(_fields(content, field.content, field.end))
    large = [part for part in parts if part.holds(_RAW_DATA) and part.end - part.content > _SMALL]
    tensor = onnx.TensorProto()
    tensor.ParseFromString(_joined(content, [part for part in parts if part not in large]))
    _check_place(tensor, name)
    for part in large[-1:]:
        _place(tensor, {"location": name, "offset": part.content, "length": part.end - part.content})
    return tensor


def _check_place(tensor: onnx.TensorProto, name: str) -> None:
    """Refuse external data outside the file that the manifest's hash covers."""
    places = [item.value for item in tensor.external_data if item.key == "location"]
    if tensor.data_location == onnx.TensorProto.EXTERNAL and places != [data_name(name)]:
        raise MalformedFileError(f"its weights are in {', '.join(places)!r:.80}, not in {data_name(name)!r}")


def _place(tensor: onnx.TensorProto, place: Mapping[str, str | int]) -> None:
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items())


def _joined(content: mmap.mmap, fields: list[_Field]) -> bytes:
    return b"".join(content[field.start : field.end] for field in fields)


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message between ``start`` and ``end``."""
    while start < end:
        tag, at = _read_varint(content, start, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, stop = _read_varint(content, at, end)
        elif wire == _BYTES:
            size, at = _read_varint(content, at, end)
            stop = at + size
        elif wire in _SIZES:
            stop = at + _SIZES[wire]
        else:
            raise MalformedFileError(f"no protobuf message at byte {start}")
        if not number or stop > end:
            raise MalformedFileError(f"no protobuf message at byte {start}")
        yield _Field(number, wire, start, at, stop)
        start = stop


def _read_varint(content: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(start, min(end, start + _LONGEST_VARINT)):
        value |= (content[index] & 0x7F) << 7 * (index - start)
        if content[index] < 0x80:
            return value, index + 1
    raise MalformedFileError(f"no protobuf message at byte {start}")
