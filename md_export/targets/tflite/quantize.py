"""Apply a QuantScheme to a float .tflite file by ai_edge_quantizer."""

from __future__ import annotations

import io
from collections import defaultdict
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from md_export.errors import ConversionError
from md_export.spec.recipe import QuantScheme
from md_export.targets.contract import LoweringJob
from md_export.targets.tflite.flatbuffer import read_model, weighted_ops
from md_export.targets.tflite.large_weights import chunked_by_channel
from md_export.targets.tflite.lower import scratch_file
from md_export.targets.tflite.names import exactly
from md_export.targets.tflite.quiet import quiet
from md_export.targets.tflite.ranges import measure_ranges
from md_export.targets.tflite.storage import EMBEDDING, check_scheme, is_per_channel, stored_as
from md_export.targets.tflite.target import TfliteModel

_NORMS: Final = (nn.GroupNorm, nn.LayerNorm)
_STATIC: Final = "int8_static"
# ai_edge_quantizer's name for an operation where it is not the file's.
_QUANTIZER_NAMES: Final = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}


@dataclass(frozen=True)
class _Kind:
    """Operations that are stored alike."""

    operation: str
    weights: str
    per_channel: bool


def quantize(model: TfliteModel, job: LoweringJob) -> TfliteModel:
    """Store and compute the component as ``job.scheme`` says; float32 at inputs and outputs.

    Each weight is stored as the scheme says of its module, where :data:`~.storage.OPERATIONS` has it. Norms and the
    modules that ``job.scheme.keep_float`` matches stay float32, with their activations.

    Raises:
        ConversionError: the scheme asks for what this target cannot make, or the quantizer failed.
    """
    check_scheme(job)
    kinds = _kinds(model.path, job.module, job.scheme)
    if not kinds:
        return model
    path = scratch_file(job.workdir)
    with quiet():
        try:
            _quantize(model.path, path, kinds, job)
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise ConversionError(f"ai_edge_quantizer cannot quantize {job.component}: {error}") from error
    return TfliteModel(path)


def _kinds(source: Path, module: nn.Module, scheme: QuantScheme) -> dict[_Kind, list[str]]:
    """Output names of the operations whose weight does not stay float32, by how they are stored."""
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
    # tqdm bars, which no argument turns off.
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
    # Weights alone would put a DEQUANTIZE of the whole table into every call, with which LiteRT's GPU engine aborts;
    # with static ranges the table's output would be int8, too.
    if activations == "int8_dynamic" or kind.operation == EMBEDDING:
        quantizer.add_dynamic_config(regex, operation, num_bits=bits, granularity=granularity)
    elif activations == _STATIC:
        quantizer.add_static_config(
            regex, operation, activation_num_bits=8, weight_num_bits=bits, weight_granularity=granularity
        )
    else:
        quantizer.add_weight_only_config(regex, operation, num_bits=bits, granularity=granularity)
