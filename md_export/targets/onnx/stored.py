"""Constants of a saved ONNX file: decode them one at a time, and change them for the self-test of verification."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from md_export.errors import RuntimeFault, raised_as
from md_export.spec.scheme import QuantScheme
from md_export.targets.onnx.clean import module_path
from md_export.targets.onnx.describe import MALFORMED, dtype_of, read_unfused, stored_bytes
from md_export.targets.stored import LEVELS, Constant, Float32, Grid, Role, StoredWeight, Use, along

_MULTIPLIED: Final[tuple[tuple[str, int], ...]] = (("Conv", 1), ("Gemm", 1), ("MatMul", 1), ("Gather", 0))
_NORMS: Final = ("LayerNormalization", "InstanceNormalization")
# Role of an operand, by operator and position. A norm's gamma is the second operand of the product.
_ROLES: Final[dict[tuple[str, int], Role]] = {
    **dict.fromkeys((*_MULTIPLIED, ("Mul", 1), *((kind, 1) for kind in _NORMS)), "weight"),
    **dict.fromkeys((("Conv", 2), ("Gemm", 2), ("Add", 1), *((kind, 2) for kind in _NORMS)), "bias"),
}
_SCALED: Final = "DequantizeLinear"
_NARROW: Final = (onnx.TensorProto.INT8, onnx.TensorProto.INT4)


def dequantized(node: Any, read: Callable[[str], Any]) -> tuple[Float32, Float32]:
    """Compute a DequantizeLinear of constants; return its values and its scales, with as many axes.

    Args:
        node: has the names of integers, scale and optionally zero point.
        read: returns a constant by name.
    """
    integers, scale, zero = (_read(node, position, read) for position in range(3))
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    if block:
        steps, zero = scale, zero.repeat(block, axis) if zero.ndim else zero
        return (integers - zero) * steps.repeat(block, axis), steps
    steps = along(scale, integers.ndim, axis)
    return (integers - along(zero, integers.ndim, axis)) * steps, steps


def _read(node: Any, position: int, read: Callable[[str], Any]) -> Float32:
    name = node.input[position] if len(node.input) > position else ""
    values: Float32 = np.asarray(read(name) if name else 0, np.float32)
    return values


def attribute(node: Any, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


class _Reader(NamedTuple):
    """A node and the position of the input that reads a value."""

    node: Any
    position: int


class _Coding(NamedTuple):
    """Decoding of a constant to float: the node, its other constants, and the readers of the float."""

    node: Any
    parts: tuple[str, ...]
    readers: tuple[_Reader, ...]


def stored_weights(path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:  # noqa: ARG001 (the contract's)
    """Yield every initializer except the scales and zero points of other initializers.

    Raises:
        RuntimeFault: the file is not an ONNX model, or its weights cannot be read.
    """
    graph = read_unfused(path).graph
    with raised_as(RuntimeFault, f"{path.name}: its weights cannot be read", MALFORMED, then="; export it again"):
        yield from _File(graph, path.parent).weights()


class _File:
    """A graph with access to its constants."""

    def __init__(self, graph: Any, folder: Path) -> None:
        self._folder = str(folder)
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._readers: dict[str, list[_Reader]] = defaultdict(list)
        self._makers = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            for position, name in enumerate(node.input):
                self._readers[name].append(_Reader(node, position))

    def weights(self) -> Iterator[StoredWeight]:
        codings = {name: coding for name in self._tensors if (coding := self._coding(name))}
        owned = {part for coding in codings.values() for part in coding.parts}
        for name in self._tensors:
            if name not in owned:
                yield self._weight(name, codings.get(name))

    def _weight(self, name: str, coding: _Coding | None) -> StoredWeight:
        dtype, parts = dtype_of(self._tensors[name]), Counter[str]()
        for part in (name, *(coding.parts if coding else ())):
            parts[dtype_of(self._tensors[part])] += stored_bytes(self._tensors[part])
        values, steps = self._decoded(name, coding)
        readers = coding.readers if coding else tuple(self._readers[name])
        turned = any(_is_transposed(reader) for reader in readers)
        return StoredWeight(
            name=name,
            dtype=dtype,
            parts=parts,
            values=_as_torch(values, turned),
            uses=tuple(dict.fromkeys(_use(reader) for reader in readers)),
            half="float16" in parts,
            promised=_is_promised(readers, values.shape, dtype),
            grid=None if steps is None else Grid(_as_torch(steps, turned), LEVELS[dtype]),
        )

    def _coding(self, name: str) -> _Coding | None:
        """Return the decoding: DequantizeLinear, also after a row look-up, or Cast from float16; None for floats."""
        dtype = dtype_of(self._tensors[name])
        for node in [reader.node for reader in self._readers[name] if reader.position == 0]:
            if node.op_type == _SCALED:
                return self._scaled(node)
            if node.op_type == "Gather" and dtype == "int8":
                return _Coding(node, (self._row_scales(node),), (_Reader(node, 0),))
            if node.op_type == "Cast" and dtype == "float16":
                return _Coding(node, (), tuple(self._readers[node.output[0]]))
        return None

    def _scaled(self, node: Any) -> _Coding:
        parts, readers = [name for name in node.input[1:] if name], self._readers[node.output[0]]
        if readers and readers[0].node.op_type == "Reshape":
            shaped = readers[0].node
            parts, readers = [*parts, shaped.input[1]], self._readers[shaped.output[0]]
        return _Coding(node, tuple(parts), tuple(readers))

    def _decoded(self, name: str, coding: _Coding | None) -> tuple[Float32, Float32 | None]:
        """Return the values, and the scales of a weight that is stored as integers."""
        if coding is None or not coding.parts:
            return self._read(name).astype(np.float32, copy=False), None
        if coding.node.op_type != _SCALED:
            steps = along(self._read(coding.parts[0]), 2, 0)
            return self._read(name).astype(np.float32) * steps, steps
        values, steps = dequantized(coding.node, self._read)
        shape = self._read(coding.parts[-1]) if dtype_of(self._tensors[coding.parts[-1]]) == "int64" else values.shape
        values = values.reshape(shape)
        return values, steps.reshape((*steps.shape, *[1] * (values.ndim - steps.ndim)))

    def _row_scales(self, gather: Any) -> str:
        """Return the name of the constant with the row scales of looked-up integers."""
        (cast,) = self._readers[gather.output[0]]
        (product,) = self._readers[cast.node.output[0]]
        other = next(name for name in product.node.input if name != cast.node.output[0])
        return str(self._makers[other].input[0])

    def _read(self, name: str) -> Any:
        return onnx.numpy_helper.to_array(self._tensors[name], self._folder)


def _use(reader: _Reader) -> Use:
    return Use((module_path(reader.node.name),), _ROLES.get((reader.node.op_type, reader.position), ""))


def _is_transposed(reader: _Reader) -> bool:
    """Whether the operand is ``[in, out]``, the transpose of a linear's weight."""
    if reader.position != 1 or reader.node.op_type not in ("MatMul", "Gemm"):
        return False
    return not any(item.name == "transB" and item.i for item in reader.node.attribute)


def _as_torch(values: Float32, turned: bool) -> Float32:
    return values.T if turned and values.ndim == 2 else values


def _is_promised(readers: tuple[_Reader, ...], shape: tuple[int, ...], dtype: str) -> bool:
    """Whether the scheme must compress a weight: an operand of a product or look-up; NPU tables follow activations."""
    promised = [kind for kind in _MULTIPLIED if kind[0] != "Gather" or not dtype.startswith("uint")]
    return len(shape) >= 2 and any((reader.node.op_type, reader.position) in promised for reader in readers)


@contextmanager
def edit(path: Path) -> Iterator[list[Constant]]:
    """Yield the constants in the order in which nodes read them; changes in place are saved at the end."""
    read_unfused(path)
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = {node.input[1] for node in model.graph.node if _dequantizes(node, tensors)}
    names = dict.fromkeys(name for node in model.graph.node for name in node.input if name in tensors)
    constants = [_constant(tensors[name], name in scales) for name in names]
    yield constants
    for constant in constants:
        _write(constant, tensors[constant.name])
    onnx.save(model, path)


def _constant(tensor: onnx.TensorProto, is_scale: bool) -> Constant:
    if tensor.data_type == onnx.TensorProto.INT4:
        return Constant(tensor.name, "packed", np.frombuffer(bytearray(tensor.raw_data), np.uint8))
    return Constant(tensor.name, "scale" if is_scale else "weight", np.array(numpy_helper.to_array(tensor)))


def _write(constant: Constant, tensor: onnx.TensorProto) -> None:
    if constant.role == "packed":
        tensor.raw_data = constant.values.tobytes()
    else:
        tensor.CopyFrom(numpy_helper.from_array(constant.values, constant.name))


def store_as_float(path: Path) -> bool:
    """Store each integer weight as its float values, which changes no output; return False without any."""
    read_unfused(path)
    model = onnx.load(path)
    graph, tensors = model.graph, {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in graph.node if _dequantizes(node, tensors)]
    for node in nodes:
        values, _ = dequantized(node, lambda name: numpy_helper.to_array(tensors[name]))
        computed = onnx.helper.tensor_dtype_to_np_dtype(tensors[node.input[1]].data_type)
        graph.initializer.append(numpy_helper.from_array(values.astype(computed), node.output[0]))
        graph.node.remove(node)
    for name in {node.input[0] for node in nodes}:
        graph.initializer.remove(tensors[name])
    onnx.save(model, path)
    return bool(nodes)


def _dequantizes(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> bool:
    """Whether a node decodes a stored weight to float; biases are int32."""
    return (
        node.op_type == "DequantizeLinear" and node.input[0] in tensors and tensors[node.input[0]].data_type in _NARROW
    )
