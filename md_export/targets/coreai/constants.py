"""Constants of a program: conversion of types and values from and to numpy, and of weights to integers or palettes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final

import numpy as np

from md_export.errors import RuntimeFault
from md_export.spec.scheme import WeightStorage
from md_export.spec.tensors import Array
from md_export.targets.coreai.bindings import copy_constant_value_to_array, ir
from md_export.targets.quantization.levels import palettize

Floats = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Element:
    """Type of a constant's elements.

    Attributes:
        name: ``float16``, ``uint4``, ….
        bits: bits of one element in the file.
        numpy: numpy dtype of the values in memory.
    """

    name: str
    bits: int
    numpy: Any


ELEMENTS: Final = {
    "f32": Element("float32", 32, np.float32),
    "f16": Element("float16", 16, np.float16),
    **{f"si{bits}": Element(f"int{bits}", bits, np.dtype(f"int{max(bits, 8)}")) for bits in (4, 8, 16, 32, 64)},
    **{f"ui{bits}": Element(f"uint{bits}", bits, np.uint8) for bits in (1, 2, 4, 6)},
    **{f"ui{bits}": Element(f"uint{bits}", bits, np.dtype(f"uint{bits}")) for bits in (8, 16, 32, 64)},
    "i1": Element("bool", 8, np.bool_),
}
_TYPES: Final = {element.name: name for name, element in ELEMENTS.items()}


def is_constant(op: Any) -> bool:
    """Whether an operation is a constant."""
    return bool(op.name == "coreai.constant")


def element_of(op: Any) -> Element:
    """Return the element type of a constant.

    Raises:
        RuntimeFault: our exports do not have this type.
    """
    kind = str(op.results[0].type.element_type)
    if kind not in ELEMENTS:
        raise RuntimeFault(f"the Core AI program has a constant of type {kind:.40}; export it again")
    return ELEMENTS[kind]


def shape_of(op: Any) -> tuple[int, ...]:
    """Return the shape of a constant."""
    return tuple(op.results[0].type.shape)


def stored_bytes(op: Any) -> int:
    """Return the bytes of a constant's values; two of int4 are one byte, and equal ones are stored once."""
    held, element = op.attributes["value"], element_of(op)
    if ir.DenseElementsAttr.isinstance(held) and ir.DenseElementsAttr(held).is_splat:
        return -(-element.bits // 8)
    return -(-prod(shape_of(op)) * element.bits // 8)


def values_of(op: Any) -> Array:
    """Return a constant's values, int4 as int8, uint4 as uint8."""
    element, shape = element_of(op), shape_of(op)
    held = op.attributes["value"]
    if ir.DenseElementsAttr.isinstance(held) and ir.DenseElementsAttr(held).is_splat:
        value = ir.DenseElementsAttr(held).get_splat_value().value
        return np.full(shape, value, element.numpy)
    return unpacked(raw_of(op), element, shape)


def raw_of(op: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a constant's bytes as stored in the file."""
    raw = np.zeros(-(-prod(shape_of(op)) * element_of(op).bits // 8), np.uint8)
    copy_constant_value_to_array(constant_op=op, destination=raw)
    return raw


def unpacked(raw: np.ndarray[Any, Any], element: Element, shape: tuple[int, ...]) -> Array:
    """Unpack elements of any bit width from bytes, lowest bits first."""
    if element.bits >= 8:
        return np.asarray(raw.view(element.numpy).reshape(shape))
    bits = np.unpackbits(raw, bitorder="little")[: prod(shape) * element.bits].reshape(-1, element.bits)
    found = np.packbits(bits, axis=1, bitorder="little").reshape(shape)
    if element.numpy == np.int8:
        return np.asarray((found ^ np.uint8(8)).astype(np.int8) - np.int8(8))
    return np.asarray(found)


def packed(values: Array, element: Element) -> np.ndarray[Any, Any]:
    """Return values in the form that :func:`unpacked` reads."""
    if element.bits >= 8:
        return np.ascontiguousarray(values).reshape(-1)
    bits = np.unpackbits(values.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")[:, : element.bits]
    return np.packbits(bits, bitorder="little")


def held_value(values: Array, dtype: str, name: str) -> Any:
    """Return an attribute with values, stored as a named blob of the file unless all values are equal.

    The caller must have entered the program's context and a location.

    Args:
        values: of any shape; int4 as int8, uint4 as uint8.
        dtype: name of their type in the file, see :class:`Element`.
        name: unique name in the program; the vendor's names are random.
    """
    element = ir.Type.parse(_TYPES[dtype])
    kind = ir.RankedTensorType.get(list(values.shape), element)
    if values.size and bool((values == values.flat[0]).all()):
        return ir.DenseElementsAttr.get_splat(kind, _scalar(values.flat[0], element))
    raw = packed(values, ELEMENTS[_TYPES[dtype]])
    return ir.DenseResourceElementsAttr.get_from_buffer(raw, name, kind)


def _scalar(value: Any, element: Any) -> Any:
    if np.issubdtype(value.dtype, np.floating):
        return ir.FloatAttr.get(element, float(value))
    return ir.IntegerAttr.get(element, int(value))


def name_constants(program: Any, operations: list[Any]) -> None:
    """Number the names of constants that are stored as blobs, in place; the vendor derives names from addresses."""
    with program._module._mlir_module.context:
        for number, op in enumerate(filter(is_constant, operations)):
            if ir.DenseResourceElementsAttr.isinstance(op.attributes["value"]):
                raw = raw_of(op)
                op.attributes["value"] = ir.DenseResourceElementsAttr.get_from_buffer(
                    raw, f"constant_{number}", op.results[0].type
                )


def integers(weight: Floats, storage: WeightStorage) -> tuple[Array, Floats]:
    """Round a weight to symmetric integers with a scale from the largest magnitude of each group.

    Args:
        weight: float32 or float16, ``[out, in, *kernel]``.
        storage: has one scale per group.

    Returns:
        int8 in the weight's shape, within ``±levels``; scales ``[*groups]`` in the weight's dtype.
    """
    wide = weight.astype(np.float32, copy=False)
    inside = tuple(range(1, 2 * weight.ndim, 2))
    parts = _parted(wide, storage.groups)
    scales = (np.abs(parts).max(axis=inside, keepdims=True) / storage.levels).astype(weight.dtype)
    scales[scales == 0] = 1
    rounded = np.clip(np.rint(parts / scales.astype(np.float32)), -storage.levels, storage.levels)
    return rounded.astype(np.int8).reshape(weight.shape), scales.reshape(storage.groups)


def indices(weight: Floats, storage: WeightStorage) -> tuple[Array, Floats]:
    """Return indices (uint8, the weight's shape) and tables ``[*groups, entries, 1]``: see :func:`palettize`."""
    parts = _parted(weight, storage.groups)
    found = np.empty(parts.shape, np.uint8)
    tables = np.empty((*storage.groups, storage.entries, 1), weight.dtype)
    for group in product(*map(range, storage.groups)):
        place = tuple(item for index in group for item in (index, slice(None)))
        table, chosen = palettize(parts[place], storage.entries)
        tables[group] = table[:, None]
        found[place] = chosen.reshape(parts[place].shape)
    return found.reshape(weight.shape), tables


def scaled(values: Array, scales: Floats, offsets: tuple[Array, Floats]) -> Floats:
    """Compute ``blockwise_shift_scale``: ``scale · (value - offset) + offset``, in the second offset's type."""
    first, second = (_each(offset, values.shape) for offset in offsets)
    found = _each(scales, values.shape).astype(np.float32) * (values.astype(np.float32) - first) + second
    return np.asarray(found.astype(offsets[1].dtype))


def looked_up(chosen: Array, tables: Floats) -> Floats:
    """Compute ``lut_to_dense`` with one value per entry."""
    groups = tables.shape[: chosen.ndim]
    numbers = _each(np.arange(int(np.prod(groups))).reshape(groups), chosen.shape)
    return np.asarray(tables.reshape(-1, tables.shape[-2])[numbers, chosen])


def _parted(values: Floats, groups: tuple[int, ...]) -> Floats:
    """Reshape to ``[groups[0], shape[0] / groups[0], groups[1], …]``."""
    return values.reshape(
        [part for size, count in zip(values.shape, groups, strict=True) for part in (count, size // count)]
    )


def _each(blocks: Floats, shape: tuple[int, ...]) -> Floats:
    """Expand one value per group to one value per element."""
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis=axis)
    return blocks
