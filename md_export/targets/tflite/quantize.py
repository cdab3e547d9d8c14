"""Apply a QuantScheme to a float .tflite file by ai_edge_quantizer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from torch import nn

from md_export.errors import ConversionError
from md_export.recipe import QuantScheme
from md_export.targets.contract import LoweringJob
from md_export.targets.tflite.flatbuffer import read_model, weighted_ops
from md_export.targets.tflite.large_weights import chunked_by_channel
from md_export.targets.tflite.lower import SIGNATURE, TfliteModel, scratch_file
from md_export.targets.tflite.names import exactly
from md_export.targets.tflite.quiet import quiet

_DENSE: Final = ("FULLY_CONNECTED", "CONV_2D", "CONV_2D_TRANSPOSE")
_MATRICES: Final = (*_DENSE, "DEPTHWISE_CONV_2D")
_EMBEDDING: Final = "EMBEDDING_LOOKUP"
_ALL_OPS: Final = "*"
_NORMS: Final = (nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class _Method:
    """How ai_edge_quantizer reaches one (weights, activations) pair.

    Attributes:
        operations: ops whose weight is changed; all others stay as they are.
        rule: adds one op's rule to the quantizer: ``rule(quantizer, regex, operation, granularity)``.
        calibrated: whether activation ranges are measured on the job's calibration inputs.
    """

    operations: tuple[str, ...]
    rule: Callable[[Any, str, Any, Any], None]
    calibrated: bool = False


def _float16(quantizer: Any, regex: str, operation: Any, granularity: Any) -> None:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    quantizer.add_weight_only_config(
        regex, operation, num_bits=16, granularity=granularity, algorithm_key=AlgorithmName.FLOAT_CASTING
    )


def _int8_weight_only(quantizer: Any, regex: str, operation: Any, granularity: Any) -> None:
    if operation == _EMBEDDING:
        # Else a DEQUANTIZE of the whole table at every call, with which LiteRT's GPU engine aborts.
        _int8_dynamic(quantizer, regex, operation, granularity)
    else:
        quantizer.add_weight_only_config(regex, operation, num_bits=8, granularity=granularity)


def _int8_dynamic(quantizer: Any, regex: str, operation: Any, granularity: Any) -> None:
    quantizer.add_dynamic_config(regex, operation, num_bits=8, granularity=granularity)


def _int8_static(quantizer: Any, regex: str, operation: Any, granularity: Any) -> None:
    if operation == _EMBEDDING:
        # Else its output is int8, too.
        _int8_dynamic(quantizer, regex, operation, granularity)
    else:
        quantizer.add_static_config(
            regex, operation, activation_num_bits=8, weight_num_bits=8, weight_granularity=granularity
        )


# The Android GPU runs no float16 embedding table, so float16 leaves it in float32. XNNPACK has no depthwise
# convolution with dynamic ranges, and the kernel that stands in is several times slower than float and wrong with
# one scale per tensor.
METHODS: Final[Mapping[tuple[str, str], _Method]] = {
    ("float16", "float32"): _Method(_MATRICES, _float16),
    ("int8", "float32"): _Method((*_MATRICES, _EMBEDDING), _int8_weight_only),
    ("int8", "int8_dynamic"): _Method((*_DENSE, _EMBEDDING), _int8_dynamic),
    ("int8", "int8_static"): _Method((*_MATRICES, _EMBEDDING), _int8_static, calibrated=True),
}


def quantize(model: object, job: LoweringJob) -> TfliteModel:
    """Store and compute the component as ``job.scheme`` says; float32 at inputs and outputs.

    Norms and the modules that ``job.scheme.keep_float`` matches stay float32, with their activations.

    Raises:
        ConversionError: the scheme is not among :data:`METHODS`, or the quantizer failed.
    """
    lowered = cast(TfliteModel, model)
    scheme = job.scheme
    if scheme.refinements:
        raise ConversionError(
            f"{job.component}: tflite has no {scheme.refinements[0]}; it stores int8 with a scale per tensor or channel"
        )
    if (scheme.weights, scheme.activations) == ("float32", "float32"):
        return lowered
    method = METHODS.get((scheme.weights, scheme.activations))
    if method is None:
        known = ", ".join(f"{w} weights with {a} activations" for w, a in (("float32", "float32"), *METHODS))
        raise ConversionError(
            f"tflite cannot store {scheme.weights} weights with {scheme.activations} activations; use one of: {known}"
        )
    path = scratch_file(job.workdir)
    with quiet():
        try:
            _quantize(lowered.path, path, method, job)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise ConversionError(f"ai_edge_quantizer cannot quantize {job.component}: {error}") from error
    return TfliteModel(path)


def _quantize(source: Path, target: Path, method: _Method, job: LoweringJob) -> None:
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    granularity = QuantGranularity.CHANNELWISE if job.scheme.granularity == "channel" else QuantGranularity.TENSORWISE
    quantizer = Quantizer(str(source))
    for operation in method.operations:
        method.rule(quantizer, ".*", TFLOperationName(operation), granularity)
    kept = exactly(_float_ops(source, job.module, job.scheme))
    if kept is not None:
        # The last rule that matches an op wins.
        quantizer.update_quantization_recipe(kept, TFLOperationName(_ALL_OPS), algorithm_key=AlgorithmName.NO_QUANTIZE)
    # tqdm bars, which no argument turns off.
    with redirect_stderr(io.StringIO()), chunked_by_channel():
        ranges = _calibrate(source, quantizer, job) if method.calibrated else None
        quantizer.quantize(
            ranges, serialize_to_path=str(target), enable_progress_bar=False, enable_progress_report=False
        )


def _float_ops(source: Path, module: nn.Module, scheme: QuantScheme) -> list[str]:
    """Output names of the ops whose module is a norm or matched by ``keep_float``."""
    kept = {path for path, child in module.named_modules() if scheme.keeps_float(path) or isinstance(child, _NORMS)}
    return [op.output for op in weighted_ops(read_model(source)) if op.module in kept]


def _calibrate(source: Path, quantizer: Any, job: LoweringJob) -> dict[str, Any]:
    """Least and greatest value of every tensor over the job's calibration inputs."""
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    if not job.calibration:
        raise ConversionError(f"int8_static needs calibration inputs, but {job.component} has none")
    rules = RecipeManager()
    rules.load_quantization_recipe(quantizer.get_quantization_recipe())
    # The default, a moving average, would forget all but the last few inputs.
    calibrator = Calibrator(str(source), num_threads=2, qsv_update_func=min_max_update)
    calibrator.calibrate({SIGNATURE: [dict(inputs) for inputs in job.calibration]}, rules)
    return cast(dict[str, Any], calibrator.get_model_qsvs())
