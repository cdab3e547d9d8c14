"""Every constant of a saved ONNX file, decoded, with the torch modules that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx

from md_export.errors import RuntimeFault
from md_export.scheme import QuantScheme
from md_export.targets.onnx.clean import module_path
from md_export.targets.onnx.describe import read_graph
from md_export.targets.stored import Float32, Grid, Role, StoredWeight, Use, along

# What an operand is, by operator and position. A product of the norm's value and its gamma stands second.
_ROLES: Final[dict[tuple[str, int], Role]] = {
    ("Conv", 1): "weight",
    ("Gemm", 1): "weight",
    ("MatMul", 1): "weight",
    ("Gather", 0): "weight",
    ("Mul", 1): "weight",
    ("LayerNormalization", 1): "weight",
    ("InstanceNormalization", 1): "weight",
    ("Conv", 2): "bias",
    ("Gemm", 2): "bias",
    ("Add", 1): "bias",
    ("LayerNormalization", 2): "bias",
    ("InstanceNormalization", 2): "bias",
}
_MULTIPLIED: Final = (("Conv", 1), ("Gemm", 1), ("MatMul", 1), ("Gather", 0))
_LEVELS: Final = {"int8": 127, "uint8": 255, "int32": 2**31 - 1}
_SCALED: Final = "DequantizeLinear"


class _Reader(NamedTuple):
    """A node and the position at which it takes a value."""

    node: Any
    position: int


class _Scaled(NamedTuple):
    """Names of the scale and zero point of an integer constant, its axis of channels, and who reads the product."""

    scale: str
    zero: str
    axis: int
    readers: tuple[_Reader, ...]


def stored_weights(path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:  # noqa: ARG001 (the contract's)
    """Every initializer but the scales and zero points of others, one at a time.

    Raises:
        RuntimeFault: the file is no ONNX model, or its weights cannot be read.
    """
    graph = read_graph(path).graph
    try:
        yield from _File(graph, path.parent).weights()
    except (onnx.checker.ValidationError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise RuntimeFault(f"{path.name}: its weights cannot be read: {error}; export it again") from error


class _File:
    """A graph and how to read its constants."""

    def __init__(self, graph: Any, folder: Path) -> None:
        self._folder = str(folder)
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._readers: dict[str, list[_Reader]] = defaultdict(list)
        self._makers = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            for position, name in enumerate(node.input):
                self._readers[name].append(_Reader(node, position))

    def weights(self) -> Iterator[StoredWeight]:
        found = {name: scaled for name in self._tensors if (scaled := self._scaled(name))}
        owned = {part for scaled in found.values() for part in (scaled.scale, scaled.zero)}
        for name in self._tensors:
            if name not in owned:
                yield self._weight(name, found.get(name))

    def _weight(self, name: str, scaled: _Scaled | None) -> StoredWeight:
        tensor, values = self._tensors[name], self._read(name)
        parts, grid, readers = {_dtype(tensor): values.nbytes}, None, self._readers[name]
        if scaled:
            for part in filter(None, (scaled.scale, scaled.zero)):
                dtype = _dtype(self._tensors[part])
                parts[dtype] = parts.get(dtype, 0) + self._read(part).nbytes
            readers = list(scaled.readers)
            steps = along(self._read(scaled.scale), values.ndim, scaled.axis)
            zero = along(self._read(scaled.zero), values.ndim, scaled.axis) if scaled.zero else np.float32(0)
            grid = Grid(steps, _LEVELS[_dtype(tensor)])
            values = (values.astype(np.float32) - zero) * steps
        turned = any(_is_transposed(reader) for reader in readers)
        return StoredWeight(
            name=name,
            dtype=_dtype(tensor),
            parts=parts,
            values=_as_torch(values.astype(np.float32, copy=False), turned),
            uses=tuple(dict.fromkeys(_use(reader) for reader in readers)),
            half=any(dtype == "float16" for dtype in parts),
            promised=_is_promised(readers, values.shape),
            grid=Grid(_as_torch(grid.steps, turned), grid.levels) if grid else None,
        )

    def _scaled(self, name: str) -> _Scaled | None:
        """How an integer constant becomes a float: by DequantizeLinear, or after the look-up of its rows."""
        for node, position in self._readers[name]:
            if node.op_type == _SCALED and position == 0:
                scale, zero = node.input[1], node.input[2] if len(node.input) > 2 else ""
                return _Scaled(scale, zero, _axis(node, default=1), tuple(self._readers[node.output[0]]))
            if node.op_type == "Gather" and position == 0 and _dtype(self._tensors[name]) == "int8":
                return _Scaled(self._row_scales(node), "", 0, (_Reader(node, 0),))
        return None

    def _row_scales(self, gather: Any) -> str:
        """The constant whose rows the looked-up integers are multiplied with."""
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


def _is_promised(readers: list[_Reader], shape: tuple[int, ...]) -> bool:
    """Every operand of a product or a look-up is stored as the scheme says."""
    return len(shape) >= 2 and any((reader.node.op_type, reader.position) in _MULTIPLIED for reader in readers)


def _axis(node: Any, default: int) -> int:
    return next((item.i for item in node.attribute if item.name == "axis"), default)


def _dtype(tensor: Any) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name)
