"""MIL's data types and what carries each of them at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from md_export.errors import RuntimeFault


@dataclass(frozen=True)
class Dtype:
    """One MIL data type.

    Attributes:
        name: MIL's own name, as in a ``cast``'s ``dtype``.
        kind: ``float``, ``int``, ``bool`` or ``string``.
        bits: width in the weight file; below 8 the elements are packed, least significant bit first.
        signed: whether a packed element carries a sign bit.
        stored: numpy type of one unpacked element as it lies in the weight file or in an immediate value.
        carrier: torch type a value of this type has while the program runs. torch computes little with its
            own unsigned types wider than 8 bits, so those ride in the next wider signed one.
    """

    name: str
    kind: str
    bits: int
    signed: bool
    stored: str
    carrier: torch.dtype | None


_TABLE = (
    ("BOOL", Dtype("bool", "bool", 8, False, "bool", torch.bool)),
    ("STRING", Dtype("string", "string", 0, False, "str", None)),
    ("FLOAT16", Dtype("fp16", "float", 16, True, "float16", torch.float16)),
    ("FLOAT32", Dtype("fp32", "float", 32, True, "float32", torch.float32)),
    ("FLOAT64", Dtype("fp64", "float", 64, True, "float64", torch.float64)),
    ("INT4", Dtype("int4", "int", 4, True, "int8", torch.int8)),
    ("INT8", Dtype("int8", "int", 8, True, "int8", torch.int8)),
    ("INT16", Dtype("int16", "int", 16, True, "int16", torch.int16)),
    ("INT32", Dtype("int32", "int", 32, True, "int32", torch.int32)),
    ("INT64", Dtype("int64", "int", 64, True, "int64", torch.int64)),
    *((f"UINT{bits}", Dtype(f"uint{bits}", "int", bits, False, "uint8", torch.uint8)) for bits in (1, 2, 3, 4, 6, 8)),
    ("UINT16", Dtype("uint16", "int", 16, False, "uint16", torch.int32)),
    ("UINT32", Dtype("uint32", "int", 32, False, "uint32", torch.int64)),
)

DTYPES = {dtype.name: dtype for _, dtype in _TABLE}


@dataclass(frozen=True)
class TensorType:
    """Declared type of one value.

    Attributes:
        dtype: the element type.
        shape: ``None`` for a dimension unknown until run time; ``None`` as a whole for an unknown rank.
    """

    dtype: Dtype
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype.name}[{dims}]"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is an instance of the declared one."""
        if self.shape is None:
            return True
        return len(self.shape) == len(shape) and all(
            d is None or d == s for d, s in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class OtherType:
    """A list, tuple, dictionary or state: only its protobuf kind is kept.

    Attributes:
        kind: name of the protobuf field, ``listType`` for instance.
        wrapped: the tensor type inside a state.
    """

    kind: str
    wrapped: TensorType | None = None

    def __str__(self) -> str:
        return f"state<{self.wrapped}>" if self.wrapped else self.kind


ValueType = TensorType | OtherType


def parse_type(proto: Any) -> ValueType:
    """A ``MIL_pb2.ValueType`` as a :class:`TensorType` or :class:`OtherType`.

    Raises:
        RuntimeFault: an element type this runtime does not know.
    """
    kind = proto.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(proto.tensorType)
    if kind == "stateType":
        wrapped = parse_type(proto.stateType.wrappedType)
        return OtherType("stateType", wrapped if isinstance(wrapped, TensorType) else None)
    return OtherType(str(kind))


def _tensor_type(proto: Any) -> TensorType:
    from coremltools.proto import MIL_pb2

    enum = MIL_pb2.DataType.Name(proto.dataType)
    dtype = next((dtype for name, dtype in _TABLE if name == enum), None)
    if dtype is None:
        raise RuntimeFault(f"the ML program uses element type {enum}, which this runtime does not know")
    dims: list[int | None] = []
    for dim in proto.dimensions:
        if dim.WhichOneof("dimension") == "constant":
            dims.append(int(dim.constant.size))
        elif dim.unknown.variadic:
            return TensorType(dtype, None)
        else:
            dims.append(None)
    return TensorType(dtype, tuple(dims))


def unpack_bits(packed: np.ndarray[Any, np.dtype[np.uint8]], dtype: Dtype, count: int) -> np.ndarray[Any, Any]:
    """``count`` elements of a sub-byte ``dtype`` out of a byte stream filled from the least significant bit on.

    Returns:
        uint8 or int8 [count]; signed types are sign-extended.
    """
    bits = np.unpackbits(packed, bitorder="little", count=count * dtype.bits).reshape(count, dtype.bits)
    values = bits @ (1 << np.arange(dtype.bits, dtype=np.uint8))
    if not dtype.signed:
        return values.astype(np.uint8)
    half = 1 << (dtype.bits - 1)
    return ((values.astype(np.int16) ^ half) - half).astype(np.int8)


def to_carrier(array: np.ndarray[Any, Any], dtype: Dtype) -> torch.Tensor:
    """A numpy array as the torch carrier of ``dtype``, without a copy where the types agree."""
    if array.dtype in (np.uint16, np.uint32):
        array = array.astype(np.int64)
    tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return tensor if dtype.carrier is None else tensor.to(dtype.carrier)
