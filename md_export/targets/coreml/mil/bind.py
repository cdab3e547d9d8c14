"""From an op's arguments to a kernel's typed parameters.

A kernel is a plain function. The annotation of a parameter says in which form it wants the argument:

    Tensor    floating-point values as float32, whatever they are stored as
    Stored    as it lies in memory, for kernels that only move elements
    Tensors   several values, each as for Stored
    int, float, bool, str          the element of a one-element constant
    Ints, Floats, Bools            the elements of a rank-1 constant
    Result    no argument of the op: the declared type of its first output
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.dtypes import ValueType
from md_export.targets.coreml.mil.graph import Op, Ref
from md_export.targets.coreml.mil.values import Value

Tensor = torch.Tensor
Stored = Annotated[torch.Tensor, "stored"]
Tensors = Annotated[tuple[torch.Tensor, ...], "tensors"]
Ints = tuple[int, ...]
Floats = tuple[float, ...]
Bools = tuple[bool, ...]

Result = Annotated[ValueType, "result"]

Kernel = Callable[..., Any]
Form = Callable[[tuple[Value, ...]], Any]

# Beyond this many elements the C library takes a float32 copy from the system and gives it back every time; touching
# fresh pages then costs more than converting.
_LARGE = 1 << 22


class Scratch:
    """Reused memory for float32 copies of large float16 tensors, one at a time."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self._taken = False

    def release(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        """End of a call: the buffer is free again; a result that lives in it is copied out."""
        home = self._buffer.untyped_storage().data_ptr()
        used, self._taken = self._taken, False
        if not used:
            return results
        return tuple(
            r.clone() if isinstance(r, torch.Tensor) and r.untyped_storage().data_ptr() == home else r for r in results
        )

    def lift(self, value: torch.Tensor) -> torch.Tensor:
        """``value``, as float32 if it is float16."""
        if value.dtype != torch.float16:
            return value
        if value.numel() < _LARGE or self._taken:
            return value.float()
        if self._buffer.numel() < value.numel():
            self._buffer = torch.empty(value.numel())
        self._taken = True
        return self._buffer[: value.numel()].view(value.shape).copy_(value)


def _tensor(values: tuple[Value, ...]) -> torch.Tensor:
    return _stored(values)  # Call lifts it


def _stored(values: tuple[Value, ...]) -> torch.Tensor:
    (value,) = values
    if isinstance(value, str):
        raise TypeError("a string where a tensor belongs")
    return value


def _tensors(values: tuple[Value, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(_stored((value,)) for value in values)


def _scalar(of: Callable[[Any], Any]) -> Form:
    def form(values: tuple[Value, ...]) -> Any:
        (value,) = values
        return of(value if isinstance(value, str) else value.item())

    return form


def _elements(of: Callable[[Any], Any]) -> Form:
    def form(values: tuple[Value, ...]) -> Any:
        if len(values) == 1 and not isinstance(values[0], str):
            return tuple(of(item) for item in values[0].reshape(-1).tolist())
        return tuple(of(value if isinstance(value, str) else value.item()) for value in values)

    return form


FORMS: dict[Any, Form] = {
    Tensor: _tensor,
    Stored: _stored,
    Tensors: _tensors,
    int: _scalar(int),
    float: _scalar(float),
    bool: _scalar(bool),
    str: _scalar(str),
    Ints: _elements(int),
    Floats: _elements(float),
    Bools: _elements(bool),
}


@dataclass(frozen=True)
class Signature:
    """What a kernel takes: each argument's form, the names it cannot do without, who gets the result's type."""

    forms: dict[str, Form]
    required: frozenset[str]
    result: str | None


@cache
def signature(kernel: Kernel) -> Signature:
    """Read a kernel's annotations."""
    hints = get_type_hints(kernel, include_extras=True)
    forms = {}
    required = set()
    result = None
    for name, parameter in inspect.signature(kernel).parameters.items():
        if hints[name] == Result:
            result = name
            continue
        forms[name] = FORMS[_without_none(hints[name])]
        if parameter.default is inspect.Parameter.empty:
            required.add(name)
    return Signature(forms, frozenset(required), result)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) is UnionType or str(get_origin(hint)) == "typing.Union":
        (hint,) = (arg for arg in get_args(hint) if arg is not type(None))
    return hint


@dataclass(frozen=True)
class Call:
    """An op bound to its kernel.

    Attributes:
        op: the op.
        kernel: what computes it.
        forms: form of each argument the op has.
        fixed: what the kernel gets besides.
    """

    op: Op
    kernel: Kernel
    forms: dict[str, Form]
    fixed: dict[str, Any]

    def __call__(self, value_of: Callable[[str], Value], scratch: Scratch) -> tuple[Any, ...]:
        """Run the kernel; ``value_of`` gives a named value."""
        kwargs = dict(self.fixed)
        for name, form in self.forms.items():
            group = self.op.args[name]
            given = form(tuple(value_of(item.name) if isinstance(item, Ref) else item for item in group))
            kwargs[name] = scratch.lift(given) if form is _tensor else given
        result = self.kernel(**kwargs)
        return scratch.release(result if isinstance(result, tuple) else (result,))


def bind(op: Op, kernel: Kernel) -> Call:
    """Match an op's arguments with a kernel's parameters.

    Raises:
        RuntimeFault: the op has an argument the kernel does not read, or lacks one it needs.
    """
    takes = signature(kernel)
    unknown = sorted(set(op.args) - set(takes.forms))
    if unknown:
        raise RuntimeFault(f"{op}: this runtime does not read the argument {', '.join(unknown)}")
    missing = sorted(takes.required - set(op.args))
    if missing:
        raise RuntimeFault(f"{op}: the program gives no {', '.join(missing)}")
    fixed = {takes.result: op.outputs[0].type} if takes.result else {}
    return Call(op, kernel, {name: takes.forms[name] for name in op.args}, fixed)
