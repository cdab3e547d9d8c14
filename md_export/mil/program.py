"""Execute an ML program with torch kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from md_export.errors import RuntimeFault, raised_as
from md_export.mil.bind import Call, Scratch, bind
from md_export.mil.dtypes import OtherType, TensorType, to_carrier
from md_export.mil.graph import Graph, Op, Ref, check_output, check_widths
from md_export.mil.table import kernel_for
from md_export.mil.values import Value

Array = NDArray[Any]

# ArrayFeatureType.ArrayDataType → numpy.
_ARRAY_DTYPES = {65568: "float32", 65600: "float64", 131104: "int32", 65552: "float16", 131080: "int8"}
_KERNEL_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError)
Precision = Literal["storage", "float32"]
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Feature:
    """One input or output.

    Attributes:
        name: as ``predict`` uses it.
        shape: of the array; for a flexible input, the default shape; empty where the description gives none.
        dtype: numpy name.
        flexible: whether other shapes are allowed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    flexible: bool

    def cast(self, array: Any) -> Array:
        """``array`` in this feature's dtype, as Core ML casts what it is given.

        Raises:
            RuntimeFault: not numeric, or of another shape.
        """
        given = np.asarray(array)
        if given.dtype.kind not in "fiub":
            raise RuntimeFault(f"input {self.name}: an array of dtype {given.dtype}; give numbers")
        if not self.flexible and given.shape != self.shape:
            raise RuntimeFault(f"input {self.name}: shape {list(given.shape)}, the model takes {list(self.shape)}")
        return np.ascontiguousarray(given, dtype=self.dtype).reshape(given.shape)


def features(descriptions: Any) -> tuple[Feature, ...]:
    """``FeatureDescription`` messages as features.

    Raises:
        RuntimeFault: an image, dictionary or other feature that is no array.
    """
    return tuple(_feature(item) for item in descriptions)


def _feature(proto: Any) -> Feature:
    kind = proto.type.WhichOneof("Type")
    if kind != "multiArrayType":
        raise RuntimeFault(f"{proto.name} is a feature of {kind}; this runtime takes multi-arrays only")
    array = proto.type.multiArrayType
    dtype = _ARRAY_DTYPES.get(array.dataType)
    if dtype is None:
        raise RuntimeFault(
            f"{proto.name} is a multi-array of data type {array.dataType}, which this runtime does not know"
        )
    flexible = array.WhichOneof("ShapeFlexibility") is not None
    return Feature(proto.name, tuple(int(d) for d in array.shape), dtype, flexible)


@dataclass(frozen=True)
class Event:
    """One output of one executed op, as an observer sees it.

    Attributes:
        name: of the value.
        kind: of the op.
        tensor: the value as it is stored; not to be changed.
        seconds: wall time of the whole op, rounding included.
    """

    name: str
    kind: str
    tensor: torch.Tensor
    seconds: float


Observer = Callable[[Event], None]


class Program:
    """A loaded ML program.

    Attributes:
        inputs, outputs: the surface, in the package's order.
        graph: what is executed.
    """

    def __init__(
        self, graph: Graph, inputs: tuple[Feature, ...], outputs: tuple[Feature, ...], precision: Precision
    ) -> None:
        """Bind every op to its kernel.

        Raises:
            RuntimeFault: an op, opset, argument or declared type that this runtime does not know.
        """
        if precision not in ("storage", "float32"):
            raise RuntimeFault(f"precision {precision!r}; this runtime knows 'storage' and 'float32'")
        self.graph = graph
        self.inputs = inputs
        self.outputs = outputs
        self._widen = precision == "float32"
        self._scratch = Scratch(keeps_half=not self._widen)
        self._calls = tuple(_call(op, graph) for op in graph.ops)

    def make_state(self) -> State:
        """Zeros for every state of the program."""
        return {
            item.name: torch.zeros(self._sizes(item.type.wrapped), dtype=self._carrier(item.type.wrapped))
            for item in self.graph.inputs
            if isinstance(item.type, OtherType) and item.type.wrapped
        }

    def predict(
        self,
        inputs: Mapping[str, Any],
        *,
        keep: Collection[str] = (),
        observer: Observer | None = None,
        state: State | None = None,
    ) -> dict[str, Array]:
        """Run once.

        Args:
            inputs: array-likes by input name, cast to the input's dtype.
            keep: names of values inside the program to return as well.
            observer: called for every output of every op, in execution order.
            state: from :meth:`make_state`, updated in place; needed by programs with states.

        Returns:
            The outputs in the dtypes of the description and the kept values as stored, by name. A scalar comes
            as shape [1], as Core ML gives it.

        Raises:
            RuntimeFault: missing, unknown or misshapen inputs; an op that fails, or whose result is not what
                the program declares.
        """
        self._check_names(inputs, keep)
        live = self._bind_inputs(inputs, state)
        kept: dict[str, Array] = {}
        for call, dead in zip(self._calls, self.graph.dead_after, strict=True):
            self._step(call, live, kept, keep, observer, state)
            for name in dead:
                live.pop(name, None)
        return {feature.name: self._result(feature, live) for feature in self.outputs} | kept

    def _step(
        self,
        call: Call,
        live: dict[str, torch.Tensor],
        kept: dict[str, Array],
        keep: Collection[str],
        observer: Observer | None,
        state: State | None,
    ) -> None:
        start = time.perf_counter()
        results = self._run(call, live, state)
        seconds = time.perf_counter() - start
        live.update(results)
        for name, tensor in results.items():
            if name in keep:
                kept[name] = tensor.numpy().copy()
            if observer:
                observer(Event(name, call.op.kind, tensor, seconds))

    def _run(self, call: Call, live: dict[str, torch.Tensor], state: State | None) -> dict[str, torch.Tensor]:
        op = call.op
        with raised_as(RuntimeFault, f"{op} failed", _KERNEL_ERRORS):
            results = call(lambda name: self._value(name, live), self._scratch)
        if op.kind == "write_state":
            _write_state(op, results[0], live, state)
            return {}
        if len(results) != len(op.outputs):
            raise RuntimeFault(f"{op}: the program declares {len(op.outputs)} outputs, the op has {len(results)}")
        return {
            out.name: check_output(op, out, result).to(self._carrier(out.type))
            for out, result in zip(op.outputs, results, strict=True)
        }

    def _value(self, name: str, live: dict[str, torch.Tensor]) -> Value:
        value = live[name] if name in live else self.graph.constants.get(name)
        if value is None:
            raise RuntimeFault(f"the program reads {name}, which nothing has computed; convert the model again")
        return value

    def _carrier(self, declared: Any) -> torch.dtype:
        carrier: torch.dtype = declared.dtype.carrier
        return torch.float32 if self._widen and carrier == torch.float16 else carrier

    @staticmethod
    def _sizes(declared: TensorType) -> tuple[int, ...]:
        if declared.shape is None or None in declared.shape:
            raise RuntimeFault(f"a state of type {declared} has no fixed shape")
        return tuple(int(d or 0) for d in declared.shape)

    def _check_names(self, inputs: Mapping[str, Any], keep: Collection[str]) -> None:
        expected = {feature.name for feature in self.inputs}
        if set(inputs) != expected:
            raise RuntimeFault(f"inputs {sorted(inputs)}; the model takes exactly {sorted(expected)}")
        computed = {out.name for op in self.graph.ops for out in op.outputs}
        unknown = sorted(set(keep) - computed)
        if unknown:
            raise RuntimeFault(f"no op computes {', '.join(unknown)}; choose from the program's value names")

    def _bind_inputs(self, inputs: Mapping[str, Any], state: State | None) -> dict[str, torch.Tensor]:
        by_name = {feature.name: feature for feature in self.inputs}
        live: dict[str, torch.Tensor] = {}
        for item in self.graph.inputs:
            if isinstance(item.type, TensorType):
                array = by_name[item.name].cast(inputs[item.name])
                live[item.name] = to_carrier(array, item.type.dtype).to(self._carrier(item.type))
            elif state is not None and item.name in state:
                live[item.name] = state[item.name]
            else:
                raise RuntimeFault(f"the program has the state {item.name}: pass state=program.make_state()")
        return live

    def _result(self, feature: Feature, live: dict[str, torch.Tensor]) -> Array:
        value = self._value(feature.name, live)
        if isinstance(value, str):
            raise RuntimeFault(f"output {feature.name} is a string; this runtime gives arrays only")
        return value.numpy().astype(feature.dtype).reshape(tuple(value.shape) or (1,))


def _call(op: Op, graph: Graph) -> Call:
    check_widths(op, graph.types)
    return bind(op, kernel_for(op, graph.opset))


def _write_state(op: Op, data: torch.Tensor, live: dict[str, torch.Tensor], state: State | None) -> None:
    (target,) = op.args["input"]
    if not isinstance(target, Ref) or state is None or target.name not in state:
        raise RuntimeFault(f"{op} writes to something that is no state")
    state[target.name] = live[target.name] = data.to(state[target.name].dtype)
