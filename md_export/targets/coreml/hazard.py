"""Float16 hazards: check real activations against the range of float16, for every value of that type in a package.

Our runtime keeps such values in float32 on request, so a value past 65504 is a large number and not infinity.
Intermediate values inside an operation, such as a norm's sum of squares, are not checked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from md_export import mil
from md_export.mil.dtypes import TensorType
from md_export.mil.graph import Graph
from md_export.spec.tensors import Arrays
from md_export.targets.coreml.package import read_modules, read_spec
from md_export.targets.lint.report import Hazard

# IEEE 754 binary16: half a step above the largest number, 65504, rounding to nearest gives infinity; half of the
# smallest subnormal, 2^-24, gives zero; below 2^-14 numbers lose bits.
OVERFLOWS_AT: Final = 65520.0
FLUSHED_TO: Final = 2.0**-25
SUBNORMAL_BELOW: Final = 2.0**-14
_NAMED: Final = 3


def hazard_of(tensor: torch.Tensor, name: str, kind: str, module: str) -> Hazard:
    """Return the figures of one occurrence of a float32 value. Infinity and NaN are real here, not a result of float16.

    ``smallest`` is infinite if every magnitude is zero.
    """
    sizes = tensor.abs().reshape(-1)
    finite = sizes[sizes.isfinite()]
    small = finite[(finite < SUBNORMAL_BELOW) & (finite > 0)]
    nonzero = small if small.numel() else finite[finite > 0]
    flushed = int((small <= FLUSHED_TO).sum())
    return Hazard(
        name=name,
        kind=kind,
        module=module,
        largest=float(finite.max()) if finite.numel() else 0.0,
        smallest=float(nonzero.min()) if nonzero.numel() else math.inf,
        overflows=int((finite >= OVERFLOWS_AT).sum()),
        not_finite=sizes.numel() - finite.numel(),
        flushed=flushed,
        subnormal=small.numel() - flushed,
        count=finite.numel(),
    )


def measure(path: Path, batches: Sequence[Arrays], only: Collection[str] | None = None) -> tuple[Hazard, ...]:
    """Run a package in float32 and measure the values that it declares float16, in order of execution.

    Args:
        path: the ``.mlpackage``.
        batches: sets of inputs; figures are over all of them.
        only: names to measure; all if None.

    Raises:
        RuntimeFault: the package does not run on these inputs.
    """
    program = mil.load(path, precision="float32")
    wanted = {name for name in _halves(program.graph) if only is None or name in only}
    modules, seen = read_modules(read_spec(path)), dict[str, Hazard]()

    def observe(event: mil.Event) -> None:
        if event.name in wanted:
            found = hazard_of(event.tensor.float(), event.name, event.kind, modules.get(event.name, ""))
            seen[event.name] = seen[event.name].joined(found) if event.name in seen else found

    for batch in batches:
        program.predict(batch, observer=observe)
    return tuple(replace(item, smallest=0.0) if math.isinf(item.smallest) else item for item in seen.values())


def _halves(graph: Graph) -> Iterator[str]:
    """Yield the outputs declared float16, except decompressed weights."""
    for op in graph.ops:
        if not op.kind.startswith("constexpr_"):
            for output in op.outputs:
                if isinstance(output.type, TensorType) and output.type.dtype.name == "fp16":
                    yield output.name


class OverflowWatch:
    """Observer of runs in storage precision that records where float16 values became infinite or NaN.

    It costs one pass over each float16 value. A set of inputs with such a value runs again in float32, to distinguish
    an overflow from an intended infinity and to measure the magnitude.
    """

    def __init__(self, path: Path, graph: Graph) -> None:
        self._path = path
        self._reads = {output.name: frozenset(op.refs) for op in graph.ops for output in op.outputs}
        self._met: list[tuple[Arrays, dict[str, int]]] = []

    def begin(self, batch: Arrays) -> mil.Observer:
        """Return the observer for one run."""
        broken: set[str] = set()
        origins: dict[str, int] = {}

        def observe(event: mil.Event) -> None:
            if event.tensor.dtype != torch.float16 or _is_finite(event.tensor):
                return
            if not broken:
                self._met.append((batch, origins))
            if not broken & self._reads[event.name]:
                origins[event.name] = int((~event.tensor.isfinite()).sum())
            broken.add(event.name)

        return observe

    def hazards(self) -> tuple[str, ...]:
        """Return one line for each of the first operations with a float16 overflow, in order of execution."""
        if not self._met:
            return ()
        names = {name for _, origins in self._met for name in origins}
        lines = []
        for hazard in measure(self._path, [batch for batch, _ in self._met], names):
            if hazard.overflows or not hazard.not_finite:
                lost = sum(origins.get(hazard.name, 0) for _, origins in self._met)
                lines.append(describe_overflow(hazard, lost))
        return tuple(lines[:_NAMED])


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite; NaN fails both comparisons. Far cheaper than ``isfinite().all()`` on half."""
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()
    return low.item() > -math.inf and high.item() < math.inf


def describe_overflow(hazard: Hazard, lost: int) -> str:
    """Describe an overflow in one line: operation, torch module, magnitude; ``lost``: number of infinite values."""
    where = f"module {hazard.module}, {hazard.kind} {hazard.name}" if hazard.module else f"{hazard.kind} {hazard.name}"
    return (
        f"float16 overflow in {where}: magnitudes up to {hazard.largest:.4g}, float16 ends at 65504; {lost} values "
        "became infinite. Scale that module's weights down and the next module's up, or export with --fp32"
    )
