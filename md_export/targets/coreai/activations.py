"""int8 activations: ranges measured in Apple's runtime, a pair of quantize and dequantize on each side of a product.

    conv2d(pad(x), w) + b → dequantize(quantize(conv2d(pad(dequantize(quantize(x))), w) + b))

In front of the padding, behind the bias, symmetric, one scale per value, as Apple's coreai-opt writes them. It is not
used itself: its ranges are extremes or a moving average of them, and it quantizes what every operation of torch's graph
takes, norms and reshapes too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.coreai.bindings import dialect, ir, kind_of
from md_export.targets.coreai.constants import held_value
from md_export.targets.coreai.inside import names_of, watched
from md_export.targets.coreai.places import module_of
from md_export.targets.coreai.save import write_program
from md_export.targets.coreai.weights import Reader
from md_export.targets.observers import ObserverTable, portions

# Bytes of activations that one run may give: the full-size decoder has some of 134 MB.
_PORTION: Final = 1 << 29
_LEVELS: Final = 127
# A scale below float32's least normal number would lose its digits.
_LEAST_RANGE: Final = _LEVELS * float(np.finfo(np.float32).smallest_normal)


@dataclass(frozen=True)
class _Edge:
    """A value to quantize.

    Attributes:
        value: of the program.
        takers: operations that take the quantized one; None for all.
        place: the location of the product that asks for it.
    """

    value: Any
    takers: tuple[Any, ...] | None
    place: Any


def quantize_activations(program: Any, products: Sequence[Reader], job: LoweringJob) -> None:
    """Give each product int8 values and make int8 of what it gives, in place.

    Args:
        program: its weights stored already: the ranges are those of what it will compute.
        products: convolutions and linears that read a stored weight.
        job: gives calibration inputs, the rule for ranges and the scratch folder.

    Raises:
        ConversionError: no calibration inputs.
        ValueError: a value is NaN or infinite on some of them.
    """
    edges = _edges(products)
    reach = _measured(program, [edge.value for edge in edges], job)
    with program._module._mlir_module.context:
        for edge in edges:
            _insert(edge, reach[edge.value] / _LEVELS)


def takes_int8(product: Reader) -> bool:
    """Whether what a product multiplies its weight with was just dequantized."""
    return _made_by((_padding(product.op) or product.op).operands[0]) == "dequantize"


def _edges(products: Sequence[Reader]) -> list[_Edge]:
    """What products give, then what others of them take, each value once."""
    given = {_output(product.op): product.op.location for product in products}
    taken: dict[Any, list[Any]] = {}
    asking = dict.fromkeys(product.op for product in products)
    for op in asking:
        padding = _padding(op)
        # Convolutions of one value share their padding, and one of them may stay in float.
        taker = padding if padding and _takers(padding.results[0]) <= asking.keys() else op
        if taker.operands[0] not in given:
            taken.setdefault(taker.operands[0], []).append(taker)
    made = [_Edge(value, None, place) for value, place in given.items()]
    return made + [_Edge(value, tuple(takers), takers[0].location) for value, takers in taken.items()]


def _padding(op: Any) -> Any | None:
    """The operation that pads what a product takes; the converter makes it of a convolution."""
    return op.operands[0].owner if _made_by(op.operands[0]) == "pad" else None


def _takers(value: Any) -> set[Any]:
    return {use.owner.operation for use in value.uses}


def _made_by(value: Any) -> str:
    """Kind of the operation that makes a value; empty for an input of the program."""
    return "" if isinstance(value.owner, ir.Block) else kind_of(value.owner)


def _output(op: Any) -> Any:
    """What a product gives, with its bias."""
    made = op.results[0]
    takers = _takers(made)
    first = next(iter(takers))
    is_bias = len(takers) == 1 and kind_of(first) == "broadcasting_add" and module_of(first) == module_of(op)
    return first.results[0] if is_bias else made


def _measured(program: Any, values: Sequence[Any], job: LoweringJob) -> Mapping[Any, float]:
    """Greatest magnitude that int8 should represent, of each value."""
    if not job.calibration:
        raise ConversionError(f"{job.component}: int8_static needs calibration inputs; give the recipe golden prompts")
    names, seen = names_of(program), ObserverTable(job.ranges, symmetric=True)
    sizes = {names[value]: 4 * prod(value.type.shape) for value in values}
    with tempfile.TemporaryDirectory(dir=job.workdir) as scratch:
        saved = Path(scratch) / f"{job.component}.aimodel"
        write_program(program, saved, {})
        for portion in portions(sizes, _PORTION):
            with watched(saved, portion) as run:
                for inputs in job.calibration:
                    for name, found in run(inputs).items():
                        seen.add(name, found)
    ranges = seen.ranges()
    return {value: max(*map(abs, ranges[names[value]]), _LEAST_RANGE) for value in values}


def _insert(edge: _Edge, scale: float) -> None:
    """A pair behind where the value is made. The program's context is entered."""
    value, owner = edge.value, edge.value.owner
    point = ir.InsertionPoint.at_block_begin(owner) if isinstance(owner, ir.Block) else ir.InsertionPoint.after(owner)
    with point, edge.place:
        # By tensor: with scalars, the axis says nothing.
        zero, shift, axis = (_number(item) for item in (np.int8(0), np.float32(0), np.int32(0)))
        step = _number(np.float32(scale))
        narrow = dialect.QuantizeOp(value, step, zero, shift, axis)
        wide = dialect.dequantize(narrow.result, step, zero, shift, axis)
    if edge.takers is None:
        value.replace_all_uses_except(wide, narrow.operation)
    for taker in edge.takers or ():
        taker.operands[0] = wide


def _number(value: Any) -> Any:
    held = np.asarray(value)
    return dialect.ConstantOp(value=held_value(held, held.dtype.name, "")).result
