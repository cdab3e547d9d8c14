"""Apply a QuantScheme to a float .tflite file by ai_edge_quantizer."""

from __future__ import annotations

import dataclasses
import io
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import nn

from md_export.errors import ConversionError, raised_as
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import Array
from md_export.system.vendors import replaced
from md_export.targets.contract import LoweringJob
from md_export.targets.lowering import quiet
from md_export.targets.observers import ObserverTable
from md_export.targets.tflite.flatbuffer import exactly, read_model, weighted_ops
from md_export.targets.tflite.lower import SIGNATURE, check_scheme, scratch_file
from md_export.targets.tflite.target import TfliteModel
from md_export.targets.tflite.weights import EMBEDDING, is_per_channel, stored_as

_THREADS = 2
# Size from which uniform_quantize splits a tensor into chunks.
# Arrays ``min`` and ``max`` of each tensor by name, in the calibrator's format.
Extremes = dict[str, dict[str, Array]]
_CHUNK_BYTES: Final = 32 * 1024 * 1024
_NORMS: Final = (nn.GroupNorm, nn.LayerNorm)
_STATIC: Final = "int8_static"
# ai_edge_quantizer's names of operations, if they differ from the file's.
_QUANTIZER_NAMES: Final = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}


def measure_ranges(source: Path, quantizer: Any, job: LoweringJob) -> Extremes:
    """Measure the range of each tensor that the quantizer's recipe requires, by name: arrays ``min`` and ``max``.

    ai_edge_quantizer's calibrator measures extremes, and its extension points do not receive values, so other ranges
    than the extremes need a separate run.

    Raises:
        ConversionError: there are no calibration inputs.
        ValueError: a tensor has NaN or Inf.
    """
    if not job.calibration:
        raise ConversionError(f"int8_static needs calibration inputs, but {job.component} has none")
    extremes = _extremes(source, quantizer, job)
    return extremes if job.ranges.observer == "min_max" else extremes | _observed(source, extremes, job)


def _extremes(source: Path, quantizer: Any, job: LoweringJob) -> Extremes:
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    rules = RecipeManager()
    rules.load_quantization_recipe(quantizer.get_quantization_recipe())
    # The default is a moving average, which depends only on the last few inputs.
    calibrator = Calibrator(str(source), num_threads=_THREADS, qsv_update_func=min_max_update)
    # One call per input, because the calibrator copies all given inputs to a list to count them.
    for inputs in job.calibration if job.ranges.observer == "min_max" else job.calibration[:1]:
        calibrator.calibrate({SIGNATURE: [dict(inputs)]}, rules)
    found: Extremes = calibrator.get_model_qsvs()
    return found


def _observed(source: Path, extremes: Extremes, job: LoweringJob) -> Extremes:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(source), num_threads=_THREADS, experimental_preserve_all_tensors=True)
    runner, seen = interpreter.get_signature_runner(SIGNATURE), ObserverTable(job.ranges, symmetric=False)
    places = {item["name"]: item["index"] for item in interpreter.get_tensor_details() if item["name"] in extremes}
    for inputs in job.calibration:
        runner(**inputs)
        for name, place in places.items():
            seen.add(name, interpreter.get_tensor(place))
    return {name: _as_extremes(extremes[name], *ends) for name, ends in seen.ranges().items()}


def _as_extremes(known: dict[str, Array], low: float, high: float) -> dict[str, Array]:
    """Return a range in the shape and dtype of the calibrator's."""
    return {**known, "min": np.full_like(known["min"], low), "max": np.full_like(known["max"], high)}


@contextmanager
def chunked_by_channel() -> Iterator[None]:
    """Within the block, pass large weights of rank above 2 to ``uniform_quantize`` as matrices.

    ``uniform_quantize`` quantizes such a tensor in chunks and flattens it to rows of its last axis, but does not
    flatten the scales: "input operand has more dimensions than allowed by the axis remapping". It accepts a matrix
    with the quantized axis as one of its two axes.
    """
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor

    original = uniform_quantize_tensor.uniform_quantize

    def uniform_quantize(tensor_data: Any, quantization_params: Any, is_blockwise_quant: bool = False) -> Any:
        if tensor_data.ndim <= 2 or tensor_data.nbytes <= _CHUNK_BYTES or is_blockwise_quant:
            return original(tensor_data, quantization_params, is_blockwise_quant)
        matrix, params = as_matrix(tensor_data, quantization_params)
        return original(matrix, params).reshape(tensor_data.shape)

    with replaced(uniform_quantize_tensor, "uniform_quantize", uniform_quantize):
        yield


def as_matrix(tensor: Any, params: Any) -> tuple[Any, Any]:
    """Return rank-2 views of a weight and its parameters, quantized along axis 0 or 1 (or as a whole)."""
    axis = params.quantized_dimension
    last = axis == tensor.ndim - 1
    matrix = tensor.reshape(-1, tensor.shape[-1]) if last else tensor.reshape(tensor.shape[0], -1)
    shape = (1, -1) if last else (-1, 1)
    return matrix, dataclasses.replace(
        params,
        scale=params.scale.reshape(shape),
        zero_point=params.zero_point.reshape(shape),
        quantized_dimension=None if axis is None else int(last),
    )


@dataclass(frozen=True)
class _Kind:
    """Key of operations that are stored in the same way."""

    operation: str
    weights: str
    per_channel: bool


def quantize(model: TfliteModel, job: LoweringJob) -> TfliteModel:
    """Apply ``job.scheme`` to the component; inputs and outputs stay float32.

    Each weight is stored in its module's scheme if :data:`~.weights.OPERATIONS` supports that. Norms and the modules
    that ``job.scheme.keep_float`` matches stay float32, with their activations.

    Raises:
        ConversionError: this target does not support the scheme, or the quantizer failed.
    """
    check_scheme(job)
    kinds = _kinds(model.path, job.module, job.scheme)
    if not kinds:
        return model
    path = scratch_file(job.workdir)
    what = f"ai_edge_quantizer cannot quantize {job.component}"
    with quiet(), raised_as(ConversionError, what, (RuntimeError, ValueError, TypeError, LookupError)):
        _quantize(model.path, path, kinds, job)
    return TfliteModel(path)


def _kinds(source: Path, module: nn.Module, scheme: QuantScheme) -> dict[_Kind, list[str]]:
    """Return the output names of the operations with a weight that does not stay float32, by storage."""
    norms = {path for path, child in module.named_modules() if isinstance(child, _NORMS)}
    found: dict[_Kind, list[str]] = defaultdict(list)
    for op in weighted_ops(read_model(source)):
        own = scheme.for_module(op.module)
        weights = stored_as(op.operator, own)
        if weights != "float32" and op.module not in norms and not scheme.keeps_float(op.module):
            found[_Kind(op.operator, weights, is_per_channel(op.operator, own))].append(op.output)
    return found


def _quantize(source: Path, target: Path, kinds: dict[_Kind, list[str]], job: LoweringJob) -> None:
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(str(source))
    for kind, outputs in kinds.items():
        _add(quantizer, kind, exactly(outputs), job.scheme.activations)
    # tqdm bars have no argument to disable them.
    with redirect_stderr(io.StringIO()), chunked_by_channel():
        ranges = measure_ranges(source, quantizer, job) if job.scheme.activations == _STATIC else None
        quantizer.quantize(
            ranges, serialize_to_path=str(target), enable_progress_bar=False, enable_progress_report=False
        )


def _add(quantizer: Any, kind: _Kind, regex: str, activations: str) -> None:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName

    operation = TFLOperationName(_QUANTIZER_NAMES.get(kind.operation, kind.operation))
    granularity = QuantGranularity.CHANNELWISE if kind.per_channel else QuantGranularity.TENSORWISE
    if kind.weights == "float16":
        quantizer.add_weight_only_config(
            regex, operation, num_bits=16, granularity=granularity, algorithm_key=AlgorithmName.FLOAT_CASTING
        )
        return
    bits = int(kind.weights.removeprefix("int"))
    # Weight-only storage would dequantize the whole table in every call, and LiteRT's GPU engine aborts on that;
    # with static ranges, the table's output would be int8, too.
    if activations == "int8_dynamic" or kind.operation == EMBEDDING:
        quantizer.add_dynamic_config(regex, operation, num_bits=bits, granularity=granularity)
    elif activations == _STATIC:
        quantizer.add_static_config(
            regex, operation, activation_num_bits=8, weight_num_bits=bits, weight_granularity=granularity
        )
    else:
        quantizer.add_weight_only_config(regex, operation, num_bits=bits, granularity=granularity)
