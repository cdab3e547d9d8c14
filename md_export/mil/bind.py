"""From an op's arguments to a kernel's typed parameters.

A kernel is a plain function. The annotation of a parameter says in which form it wants the argument:

    Tensor    floating-point values as float32, whatever they are stored as
    Native    as for Tensor, but still float16 where all floating-point arguments of the op are: for kernels whose
              float16 computes in float32 and rounds once, without float32 copies in memory
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
from md_export.mil.dtypes import ValueType
from md_export.mil.graph import Op, Ref
from md_export.mil.values import Value

Tensor = torch.Tensor
Native = Annotated[torch.Tensor, "native"]
Stored = Annotated[torch.Tensor, "stored"]
Tensors = Annotated[tuple[torch.Tensor, ...], "tensors"]
Ints = tuple[int, ...]
Floats = tuple[float, ...]
Bools = tuple[bool, ...]

Result = Annotated[ValueType, "result"]

Kernel = Callable[..., Any]
Form = Callable[[tuple[Value, ...]], Any]

# From this many elements on the C library takes a float32 copy from the system and gives it back every time; touching
# fresh pages then costs more than converting. Above the second, memory counts more than time.
_LARGE, _HUGE = 1 << 15, 1 << 24


class Scratch:
    """Reused memory for float32 copies of large float16 tensors: one buffer for each of a call's operands.

    Attributes:
        keeps_half: whether Native arguments may stay float16.
    """

    def __init__(self, keeps_half: bool = True) -> None:
        self.keeps_half = keeps_half
        self._buffers: list[torch.Tensor] = []
        self._taken = 0

    def release(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        """End of a call: the buffers are free again; a result that lives in one is copied out."""
        homes = {buffer.untyped_storage().data_ptr() for buffer in self._buffers[: self._taken]}
        self._taken = 0
        if not homes:
            return results
        return tuple(
            r.clone() if isinstance(r, torch.Tensor) and r.untyped_storage().data_ptr() in homes else r for r in results
        )

    def lift(self, value: torch.Tensor) -> torch.Tensor:
        """``value``, as float32 if it is float16."""
        if value.dtype != torch.float16:
            return value
        if not _LARGE <= value.numel() <= _HUGE:
            return value.float()
        return self._take(value.numel()).view(value.shape).copy_(value)

    def _take(self, count: int) -> torch.Tensor:
        if self._taken == len(self._buffers):
            self._buffers.append(torch.empty(0))
        if self._buffers[self._taken].numel() < count:
            self._buffers[self._taken] = torch.empty(count)
        self._taken += 1
        return self._buffers[self._taken - 1][:count]


def _tensor(values: tuple[Value, ...]) -> torch.Tensor:
    return _stored(values)  # Call lifts it


def _native(values: tuple[Value, ...]) -> torch.Tensor:
    return _stored(values)  # Call lifts it where some other argument is wider


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
    Native: _native,
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
    """Parameters of a kernel: each argument's form, the names it cannot do without, who gets the result's type."""

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
    fixed: dict[str, ValueType]

    def __call__(self, value_of: Callable[[str], Value], scratch: Scratch) -> tuple[Any, ...]:
        """Run the kernel; ``value_of`` gives a named value."""
        given = {
            name: form(tuple(value_of(item.name) if isinstance(item, Ref) else item for item in self.op.args[name]))
            for name, form in self.forms.items()
        }
        lifted = [name for name, form in self.forms.items() if form is _tensor]
        native = [name for name, form in self.forms.items() if form is _native]
        if not (scratch.keeps_half and all(given[name].dtype == torch.float16 for name in lifted + native)):
            lifted += native
        given.update((name, scratch.lift(given[name])) for name in lifted)
        result = self.kernel(**given, **self.fixed)
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
