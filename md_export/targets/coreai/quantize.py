"""Store the weights of a program in its scheme: integers with scales, or palettes, decoded before the product.

    conv2d(x, w[out, in, k, k]) → conv2d(x, blockwise_shift_scale(int8[out, in, k, k], scale[out, 1, 1, 1], 0, 0))
    conv2d(x, w[out, in, k, k]) → conv2d(x, lut_to_dense(uint4[out, in, k, k], table[out/16, 1, 1, 1, 16, 1], axis 0))

The operations are those that Apple's coreai-opt writes. Its passes are not used: they treat all weights of more than
1024 elements alike and skip those that do not divide with a warning, but a recipe's rules, calibrated rounding and
the audit need control over each weight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array
from md_export.targets.contract import LoweringJob
from md_export.targets.coreai.bindings import converting, dialect, ir, kind_of, module_of, operations
from md_export.targets.coreai.constants import held_value, indices, integers, values_of
from md_export.targets.coreai.run import names_of, watched
from md_export.targets.coreai.save import write_program
from md_export.targets.coreai.target import CoreaiModel
from md_export.targets.coreai.weights import Reader, path_of, storage_of, to_program, to_torch, weights_of
from md_export.targets.lowering import check_weight_globs
from md_export.targets.observers import ObserverTable, portions

# Limit of activation bytes in one calibration run; the full-size decoder has single values of 134 MB.
_PORTION: Final = 1 << 29
_LEVELS: Final = 127
# A scale below float32's smallest normal number would lose digits.
_LEAST_RANGE: Final = _LEVELS * float(np.finfo(np.float32).smallest_normal)
_FLOAT: Final = ("float32", "float16")
_SMALL: Final = ("int8", "int4", "palette8", "palette6", "palette4", "palette2")
_INT8: Final = "int8_static"


@dataclass(frozen=True)
class _Edge:
    """A value to quantize.

    Attributes:
        value: value of the program.
        takers: operations that read the quantized value; None for all.
        place: location of the product that needs it.
    """

    value: Any
    takers: tuple[Any, ...] | None
    place: Any


def quantize_activations(program: Any, products: Sequence[Reader], job: LoweringJob) -> None:
    """Quantize the input and the output of each product to int8, in place.

        conv2d(pad(x), w) + b → dequantize(quantize(conv2d(pad(dequantize(quantize(x))), w) + b))

    Before the padding and after the bias, symmetric, with one scale per value, like Apple's coreai-opt. coreai-opt is
    not used: its ranges are extremes or a moving average of them, and it quantizes the inputs of every operation of
    torch's graph, including norms and reshapes.

    Args:
        program: its weights must already be stored, because the ranges depend on them.
        products: convolutions and linears that read a stored weight.
        job: has calibration inputs, the rule for ranges and the scratch folder.

    Raises:
        ConversionError: there are no calibration inputs.
        ValueError: a value is NaN or infinite on some of them.
    """
    edges = _edges(products)
    reach = _measured(program, [edge.value for edge in edges], job)
    with program._module._mlir_module.context:
        for edge in edges:
            _insert(edge, reach[edge.value] / _LEVELS)


def takes_int8(product: Reader) -> bool:
    """Whether the first operand of a product was just dequantized."""
    return _made_by((_padding(product.op) or product.op).operands[0]) == "dequantize"


def _edges(products: Sequence[Reader]) -> list[_Edge]:
    """Return the outputs of products, then the inputs of other products, each value once."""
    given = {_output(product.op): product.op.location for product in products}
    taken: dict[Any, list[Any]] = {}
    asking = dict.fromkeys(product.op for product in products)
    for op in asking:
        padding = _padding(op)
        # Convolutions that read one value share its padding, and one of them may stay in float.
        taker = padding if padding and _takers(padding.results[0]) <= asking.keys() else op
        if taker.operands[0] not in given:
            taken.setdefault(taker.operands[0], []).append(taker)
    made = [_Edge(value, None, place) for value, place in given.items()]
    return made + [_Edge(value, tuple(takers), takers[0].location) for value, takers in taken.items()]


def _padding(op: Any) -> Any | None:
    """Return the operation that pads a product's input; the converter makes it from a convolution's padding."""
    return op.operands[0].owner if _made_by(op.operands[0]) == "pad" else None


def _takers(value: Any) -> set[Any]:
    return {use.owner.operation for use in value.uses}


def _made_by(value: Any) -> str:
    """Return the kind of operation that computes a value; empty for an input of the program."""
    return "" if isinstance(value.owner, ir.Block) else kind_of(value.owner)


def _output(op: Any) -> Any:
    """Return the output of a product, with its bias."""
    made = op.results[0]
    takers = _takers(made)
    first = next(iter(takers))
    is_bias = len(takers) == 1 and kind_of(first) == "broadcasting_add" and module_of(first) == module_of(op)
    return first.results[0] if is_bias else made


def _measured(program: Any, values: Sequence[Any], job: LoweringJob) -> Mapping[Any, float]:
    """Return the largest magnitude that int8 should represent, for each value."""
    if not job.calibration:
        raise ConversionError(f"{job.component}: int8_static needs calibration inputs; give the recipe golden prompts")
    names, seen = names_of(program), ObserverTable(job.ranges, symmetric=True)
    sizes = {names[value]: 4 * prod(value.type.shape) for value in values}
    with tempfile.TemporaryDirectory(dir=job.workdir) as scratch:
        saved = Path(scratch) / f"{job.component}.aimodel"
        write_program(program, saved, {})
        for portion in portions(sizes.items(), _PORTION):
            with watched(saved, portion) as run:
                for inputs in job.calibration:
                    for name, found in run(inputs).items():
                        seen.add(name, found)
    ranges = seen.ranges()
    return {value: max(*map(abs, ranges[names[value]]), _LEAST_RANGE) for value in values}


def _insert(edge: _Edge, scale: float) -> None:
    """Insert quantize and dequantize after the value; the caller must have entered the program's context."""
    value, owner = edge.value, edge.value.owner
    point = ir.InsertionPoint.at_block_begin(owner) if isinstance(owner, ir.Block) else ir.InsertionPoint.after(owner)
    with point, edge.place:
        # One scale per tensor; the axis has no meaning for scalars.
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


def check_scheme(job: LoweringJob) -> None:
    """Refuse a scheme that this target does not support.

    Raises:
        ConversionError: the scheme is not supported; the message lists the supported ones.
    """
    storages = job.scheme.storages
    unknown = next((storage for storage in storages if not _is_known(storage)), None)
    if unknown is None and job.scheme.activations == _INT8 and all(map(_is_float_in_int8, storages)):
        unknown = job.scheme
    if unknown is not None:
        raise ConversionError(
            f"{job.component}: the coreai target has no weights/activations {unknown.weights}/{unknown.activations}; "
            f"use float32/float32, float16/float16, one of {', '.join(_SMALL)} with float16 or float32, or "
            f"int8/{_INT8}, where rules may keep float32 weights"
        )
    if job.scheme.sparsity is not None:
        raise ConversionError(f"{job.component}: the coreai target has no sparsity; it stores all values")


def _is_known(storage: QuantScheme) -> bool:
    if storage.activations == _INT8:
        return storage.weights == "int8" or _is_float_in_int8(storage)
    same = storage.weights == storage.activations
    return storage.activations in _FLOAT and (same or storage.weights in _SMALL)


def _is_float_in_int8(storage: QuantScheme) -> bool:
    """Whether a rule may request this: float weights among int8 ones; a whole component cannot."""
    return (storage.weights, storage.activations) == ("float32", _INT8)


def quantize(model: CoreaiModel, job: LoweringJob) -> CoreaiModel:
    """Store the weights of a lowered program in its scheme, in place, and attach the job's metadata.

    Raises:
        ConversionError: the scheme is not supported, one of its globs matches nothing, or ranges cannot be measured.
    """
    check_scheme(job)
    weights = weights_of(operations(model.program))
    check_weight_globs(job, {path_of(readers) for readers in weights.values()})
    with converting(job.component, "quantization"):
        with model.program._module._mlir_module.context:
            found = [held for number, held in enumerate(weights.items()) if _stored(*held, number, job)]
        if job.scheme.activations == _INT8:
            products = [reader for _, readers in found for reader in readers if reader.is_product]
            quantize_activations(model.program, products, job)
    return replace(model, notes=dict(job.notes))


def _stored(op: Any, readers: list[Reader], number: int, job: LoweringJob) -> bool:
    """Store one weight in its scheme; return False if that needs no change."""
    path = path_of(readers)
    values = to_torch(values_of(op), readers)
    storage = None if job.scheme.keeps_float(path) else storage_of(values.shape, job.scheme.for_module(path))
    if storage is not None:
        coded = (indices if storage.entries else integers)(values, storage)
        _store(op, *coded, f"{'uint' if storage.entries else 'int'}{storage.bits}", readers, f"weight_{number}")
    return storage is not None


def _store(op: Any, values: Array, parts: Array, dtype: str, readers: list[Reader], name: str) -> None:
    """Replace a constant by a decoder and its constants.

    Args:
        values: integers or indices of the weight, in torch's layout.
        parts: scales or tables of the weight.
        dtype: type of the values in the file.
    """
    kind = op.results[0].type
    leading = len(kind.shape) - values.ndim
    values, parts = (to_program(held, readers, leading) for held in (values, parts))
    with ir.InsertionPoint(op), op.location:
        held = _constant(values, dtype, name)
        if dtype.startswith("uint"):
            operands = (
                _constant(parts, parts.dtype.name, f"{name}_table"),
                _constant(np.array(0, np.int16), "int16", ""),
            )
            made = dialect.LutToDenseOp(held, *operands, results=[kind]).result
        else:
            zeros = _constant(np.zeros(parts.shape, np.int8), dtype, "")
            shifts = _constant(np.zeros_like(parts), parts.dtype.name, "")
            scales = _constant(parts, parts.dtype.name, f"{name}_scale")
            made = dialect.BlockwiseShiftScaleOp(held, scales, zeros, shifts, results=[kind]).result
    op.results[0].replace_all_uses_with(made)
    op.erase()


def _constant(values: Any, dtype: str, name: str) -> Any:
    return dialect.ConstantOp(value=held_value(values, dtype, name)).result
