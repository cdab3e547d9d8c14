"""Constants of a program by name, each with the operands that it is decompressed from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

import numpy as np
import torch

from md_export.targets.coreml.mil.blob import BlobFile
from md_export.targets.coreml.mil.dtypes import TensorType, parse_type
from md_export.targets.coreml.mil.values import decode
from md_export.targets.stored import StoredWeight

_CONST: Final = "const"
_CONSTEXPR: Final = "constexpr_"
_NAMES: Final = {"fp16": "float16", "fp32": "float32", "fp64": "float64"}


@dataclass(frozen=True)
class Argument:
    """A constant operand: its values, the name of its type in the file, its bytes there, and whether it is float16."""

    values: torch.Tensor
    dtype: str
    nbytes: int
    half: bool = False


def plain(name: str, argument: Argument) -> StoredWeight:
    """A constant that is stored as it is."""
    values = argument.values.to(torch.float32).numpy()
    return StoredWeight(name, argument.dtype, {argument.dtype: argument.nbytes}, values, half=argument.half)


class Constants:
    """The constants of a program's operations.

    Attributes:
        names: of the constants and decompressed weights that other operations than ``constexpr_*`` may read.
    """

    def __init__(self, operations: Any, weights: Callable[[str], BlobFile], decoders: Mapping[str, Decoder]) -> None:
        self._weights, self._decoders = weights, decoders
        self._makers = {
            output.name: op
            for op in operations
            if op.type == _CONST or op.type.startswith(_CONSTEXPR)
            for output in op.outputs
        }
        packed = {argument.name for op in self._makers.values() for argument in _bound(op)}
        # Sparse weights come as a mask and values; whether or not the mask is read, the values stand for both.
        packed |= {output.name for op in self._makers.values() for output in op.outputs[:-1]}
        self.names = tuple(name for name in self._makers if name not in packed)

    def decode(self, name: str) -> StoredWeight:
        """A constant as the program computes with it; without ``parts`` where it is a string."""
        op = self._makers[name]
        if op.type == _CONST:
            argument = self._value(op.attributes["val"])
            return plain(name, argument) if argument else StoredWeight(name, "string", {}, np.zeros(0, np.float32))
        return replace(self._decoders[op.type](self, op), name=name)

    def argument(self, op: Any, role: str) -> Argument:
        """A constant operand of a ``constexpr_*`` operation.

        Raises:
            KeyError: there is none of that name.
        """
        value = self._proto(op, role)
        found = self._value(value) if not isinstance(value, str) else None
        if isinstance(value, str):
            made = self.decode(value)
            found = Argument(torch.from_numpy(np.array(made.values)), made.dtype, made.nbytes, made.half)
        if found is None:
            raise KeyError(f"{op.outputs[0].name}: {role} is no array")
        return found

    def optional(self, op: Any, role: str) -> Argument | None:
        """As :meth:`argument`; None where the operation has no such operand."""
        return self.argument(op, role) if role in op.inputs or role in op.attributes else None

    def maker(self, op: Any, role: str) -> Any | None:
        """The ``constexpr_*`` operation that makes an operand."""
        value = self._proto(op, role)
        return self._makers[value] if isinstance(value, str) else None

    def _proto(self, op: Any, role: str) -> Any:
        """The operand's value, or the name of what another ``constexpr_*`` operation makes."""
        if role in op.attributes:
            return op.attributes[role]
        (argument,) = op.inputs[role].arguments
        if argument.WhichOneof("binding") != "name":
            return argument.value
        maker = self._makers[argument.name]
        return maker.attributes["val"] if maker.type == _CONST else argument.name

    def _value(self, proto: Any) -> Argument | None:
        declared, values = parse_type(proto.type), decode(proto, self._weights)
        if isinstance(values, str) or not isinstance(declared, TensorType):
            return None
        name = _NAMES.get(declared.dtype.name, declared.dtype.name)
        return Argument(values, name, ceil(values.numel() * declared.dtype.bits / 8), name == "float16")


# Makes a weight of a ``constexpr_*`` operation and its operands.
Decoder = Callable[[Constants, Any], StoredWeight]


def _bound(op: Any) -> Iterator[Any]:
    if op.type.startswith(_CONSTEXPR):
        for value in op.inputs.values():
            yield from (argument for argument in value.arguments if argument.name)
