"""Store the weights of a program as the scheme says: integers with scales, or palettes; decoded, they are multiplied.

    conv2d(x, w[out, in, k, k]) → conv2d(x, blockwise_shift_scale(int8[out, in, k, k], scale[out, 1, 1, 1], 0, 0))
    conv2d(x, w[out, in, k, k]) → conv2d(x, lut_to_dense(uint4[out, in, k, k], table[out/16, 1, 1, 1, 16, 1], axis 0))

The operations are those that Apple's coreai-opt writes. Its passes on a program take all weights of more than 1024
elements alike and skip with a warning what does not divide; a recipe's rules, calibrated rounding and the audit need
to know each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array
from md_export.spec.weight_storage import WeightStorage
from md_export.targets.contract import LoweringJob
from md_export.targets.coreai.activations import quantize_activations
from md_export.targets.coreai.bindings import converting, dialect, ir, operations
from md_export.targets.coreai.coding import indices, integers
from md_export.targets.coreai.constants import held_value, values_of
from md_export.targets.coreai.storage import storage_of
from md_export.targets.coreai.target import CoreaiModel
from md_export.targets.coreai.weights import Reader, path_of, to_program, to_torch, weights_of
from md_export.targets.globs import check_weight_globs

_FLOAT: Final = ("float32", "float16")
_SMALL: Final = ("int8", "int4", "palette8", "palette6", "palette4", "palette2")
_INT8: Final = "int8_static"


def check_scheme(job: LoweringJob) -> None:
    """Refuse a combination that this target cannot make.

    Raises:
        ConversionError: names the combinations that it can.
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
    """Float beside int8: what a rule may ask for, but no component altogether."""
    return (storage.weights, storage.activations) == ("float32", _INT8)


def quantize(model: CoreaiModel, job: LoweringJob) -> CoreaiModel:
    """Store what :func:`lower` returned as the scheme says, in place, and give it the job's notes.

    Raises:
        ConversionError: the scheme is not supported, a glob of it matches nothing, or ranges cannot be measured.
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
    """Store one weight as the scheme says; false where that is as it is."""
    path = path_of(readers)
    values = to_torch(values_of(op), readers)
    storage = None if job.scheme.keeps_float(path) else storage_of(values.shape, job.scheme.for_module(path))
    if storage is not None:
        _store(op, (_palette if storage.entries else _integers)(values, storage), readers, f"weight_{number}")
    return storage is not None


@dataclass(frozen=True)
class _Coded:
    """A weight in torch's layout: integers with scales, or indices with tables, and the type of the former."""

    values: Array
    dtype: str
    parts: Array


def _integers(values: Any, storage: WeightStorage) -> _Coded:
    stored, scales = integers(values, storage)
    return _Coded(stored, f"int{storage.bits}", scales)


def _palette(values: Any, storage: WeightStorage) -> _Coded:
    stored, tables = indices(values, storage)
    return _Coded(stored, f"uint{storage.bits}", tables)


def _store(op: Any, coded: _Coded, readers: list[Reader], name: str) -> None:
    """Put a decoder and its constants in a constant's place."""
    kind = op.results[0].type
    leading = len(kind.shape) - coded.values.ndim
    values, parts = (to_program(held, readers, leading) for held in (coded.values, coded.parts))
    with ir.InsertionPoint(op), op.location:
        held = _constant(values, coded.dtype, name)
        if coded.dtype.startswith("uint"):
            operands = (
                _constant(parts, parts.dtype.name, f"{name}_table"),
                _constant(np.array(0, np.int16), "int16", ""),
            )
            made = dialect.LutToDenseOp(held, *operands, results=[kind]).result
        else:
            zeros = _constant(np.zeros(parts.shape, np.int8), coded.dtype, "")
            shifts = _constant(np.zeros_like(parts), parts.dtype.name, "")
            scales = _constant(parts, parts.dtype.name, f"{name}_scale")
            made = dialect.BlockwiseShiftScaleOp(held, scales, zeros, shifts, results=[kind]).result
    op.results[0].replace_all_uses_with(made)
    op.erase()


def _constant(values: Any, dtype: str, name: str) -> Any:
    return dialect.ConstantOp(value=held_value(values, dtype, name)).result
