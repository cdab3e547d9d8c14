"""Quantize a lowered program: weights as integers, palettes or sparse data, and int8 activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export import mil
from md_export.errors import ConversionError
from md_export.spec.calibration import RangeRule
from md_export.spec.scheme import QuantScheme, largest_divisor
from md_export.spec.tensors import Arrays
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.lower import deployment_target
from md_export.targets.coreml.package import WEIGHTS, read_spec
from md_export.targets.coreml.target import CoremlModel
from md_export.targets.coreml.vendor import converting, ct, cto
from md_export.targets.coreml.weights import float_weights, pays, storage_of
from md_export.targets.observers import ObserverTable
from md_export.targets.quantization.levels import palettize

Ranges = dict[str, dict[str, float]]
_MULTIPLIES: Final = ("conv", "linear")
# A scale is range / 127 in float16; below the smallest normal number it would lose digits.
_LEAST_RANGE: Final = 127 * float(np.finfo(np.float16).smallest_normal)
# weight_threshold: by default, coremltools does not compress weights of up to 2048 elements.
_ALL_SIZES: Final[Mapping[str, int]] = {"weight_threshold": 0}


def measure_ranges(package: Path, calibration: Sequence[Arrays], rule: RangeRule) -> Ranges:
    """Measure the range of every float value of the program by a rule, in the format of coremltools' passes.

    ``coremltools.optimize.coreml.linear_quantize_activations`` runs the same passes, but overwrites a value's range
    with every sample, so that only the last sample counts (coremltools 9.0, ``record_intermediate_output``).

    Raises:
        ValueError: a value exceeds float16's range, or is NaN.
    """
    program, seen = mil.load(package), ObserverTable(rule, symmetric=True)
    for inputs in calibration:
        for name, array in inputs.items():
            seen.add(name, array)
        program.predict(inputs, observer=lambda event: _observe(seen, event))
    return {
        name: {"rmin": min(low, -_LEAST_RANGE), "rmax": max(high, _LEAST_RANGE)}
        for name, (low, high) in seen.ranges().items()
    }


def _observe(seen: ObserverTable, event: mil.Event) -> None:
    if event.tensor.is_floating_point():
        seen.add(event.name, event.tensor.float().numpy())


def quantize_activations(program: Any, ranges: Ranges, weights: frozenset[str]) -> None:
    """Quantize inputs and outputs of the convolutions and linears with these weights to int8.

    Symmetric, one scale per value. The operations and values between them keep their types.
    """
    from coremltools.converters.mil.mil.passes.defs import optimize_activation_quantization as after
    from coremltools.optimize.coreml import _quantization_passes as before

    block = program.functions["main"]
    int8 = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8")
    chosen = [op for op in block.operations if op.op_type in _MULTIPLIES and op.inputs["weight"].op.name in weights]
    config = cto.OptimizationConfig(op_name_configs={op.name: int8 for op in chosen})
    prefix = before.insert_prefix_quantize_dequantize_pair(config)
    prefix.activation_stats = ranges
    prefix.apply(program)
    suffix = after.insert_suffix_quantize_dequantize_pair()
    suffix.config, suffix.activation_stats = config, ranges
    suffix.apply(program)
    for kind in ("quantize", "dequantize"):
        _share(block, kind)


def _share(block: Any, kind: str) -> None:
    """Merge equal operations on one value: the passes insert one for each reader, with the same scale."""
    first: dict[Any, Any] = {}
    for op in list(block.operations):
        if op.op_type != kind:
            continue
        kept = first.setdefault(op.inputs["input"], op)
        if kept is not op:
            block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=kept.outputs[0])
            block.remove_ops([op])


def compress(program: Any, stored: Mapping[str, QuantScheme]) -> frozenset[str]:
    """Store each of these weights in its scheme; nothing else changes.

    The public functions of ``coremltools.optimize.coreml`` also run these passes, but then repeat every graph pass of a
    conversion: that is ten times slower, and wraps the indices of a gather a second time.

    Constants are chosen by name, not by type of operation: equal constants of 100 elements and more are stored once,
    and coremltools reports a conflict if a norm and a linear share a zero bias.

    If a block or group does not divide a weight's channels, the largest divisor above half of it is used, else the
    whole axis. A weight stays float if a palette would not make it smaller.

    Args:
        program: program of coremltools; changed in place.
        stored: scheme by name of the weight; all have the same activations and the same sparsity.

    Returns:
        Names of the weights that stay float because a palette would not make them smaller.
    """
    from coremltools.optimize.coreml import _quantization_passes as passes

    weights = {op.name: op for op in _operations(program) if op.name in stored}
    small = frozenset(name for name, op in weights.items() if not _pays(op, stored[name]))
    chosen = {name: stored[name] for name in weights if name not in small}
    palettes = {name: _palette_config(weights[name], own) for name, own in chosen.items() if own.palette_bits}
    integers = {
        name: _linear_config(weights[name], own) for name, own in chosen.items() if own.weights.startswith("int")
    }
    sparse = any(own.sparsity is not None for own in chosen.values())
    if sparse:
        _apply(passes.prune_weights, program, {name: _pruner(weights[name], own) for name, own in chosen.items()})
        palettes, integers = (_moved(configs, program) for configs in (palettes, integers))
    if palettes:
        _apply(passes.palettize_weights, program, palettes, joint=sparse)
        if any(own.activations == "int8_static" for own in chosen.values()):
            _apply(passes.linear_quantize_weights, program, _tables(program), joint=True)
    if integers:
        _apply(passes.linear_quantize_weights, program, integers, joint=sparse)
    return small


def _operations(program: Any) -> list[Any]:
    return list(program.functions["main"].operations)


def _apply(kind: Callable[[Any], Any], program: Any, configs: Mapping[str, object], joint: bool = False) -> None:
    step = kind(cto.OptimizationConfig(op_name_configs=dict(configs)))
    step.joint_compression = joint
    step.apply(program)


def _pruner(op: Any, scheme: QuantScheme) -> Any:
    """Return a pruner with our threshold: coremltools 9.0 computes the percentile in float16, which is NaN
    for more than 65504 elements, and then prunes nothing."""
    threshold = float(np.percentile(np.abs(op.outputs[0].val.astype(np.float32)), 100 * (scheme.sparsity or 0)))
    return cto.OpThresholdPrunerConfig(threshold=threshold, minimum_sparsity_percentile=0.0, **_ALL_SIZES)


def _moved(configs: Mapping[str, object], program: Any) -> dict[str, object]:
    """Rename the configurations to the constants that hold the weights' data after pruning."""
    made = {op.name: op for op in _operations(program)}
    return {made[f"{name}_sparsified"].inputs["nonzero_data"].op.name: config for name, config in configs.items()}


def _tables(program: Any) -> dict[str, object]:
    """Return int8 configurations for the tables of all palettes, which the Neural Engine needs to multiply in int8.

    coremltools supports only one scale per tensor here.
    """
    config = cto.OpLinearQuantizerConfig(dtype="int8", granularity="per_tensor", **_ALL_SIZES)
    palettes = [
        op for op in _operations(program) if op.op_type in ("constexpr_lut_to_dense", "constexpr_lut_to_sparse")
    ]
    return {op.inputs["lut"].op.name: config for op in palettes}


def _linear_config(op: Any, scheme: QuantScheme) -> Any:
    """Return a symmetric configuration; the Neural Engine does not support zero points."""
    if scheme.block_size is None:
        return cto.OpLinearQuantizerConfig(dtype=scheme.weights, granularity=f"per_{scheme.granularity}", **_ALL_SIZES)
    given, made = _axes(op)
    blocks = [0] * len(op.outputs[0].shape)
    blocks[given], blocks[made] = largest_divisor(op.outputs[0].shape[given], scheme.block_size), 1
    return cto.OpLinearQuantizerConfig(
        dtype=scheme.weights, granularity="per_block", block_size=tuple(blocks), **_ALL_SIZES
    )


def _palette_config(op: Any, scheme: QuantScheme) -> Any:
    function = partial(palettize, entries=2 ** (scheme.palette_bits or 0), skip_zeros=scheme.sparsity is not None)
    group = _group(op, scheme)
    if group is None:
        return cto.OpPalettizerConfig(mode="custom", lut_function=function, **_ALL_SIZES)
    return cto.OpPalettizerConfig(
        mode="custom",
        lut_function=function,
        granularity="per_grouped_channel",
        group_size=group,
        channel_axis=_axes(op)[1],
        **_ALL_SIZES,
    )


def _pays(op: Any, scheme: QuantScheme) -> bool:
    return pays(tuple(op.outputs[0].shape), _axes(op)[1], op.outputs[0].val.itemsize, scheme)


def _group(op: Any, scheme: QuantScheme) -> int | None:
    """Return the number of output channels that share a table; None if all share one."""
    channels = op.outputs[0].shape[_axes(op)[1]]
    group = largest_divisor(channels, scheme.group_size) if scheme.group_size else channels
    return None if group == channels else group


def _axes(op: Any) -> tuple[int, int]:
    """Return the axes of a weight's input and output channels, from its readers."""
    from coremltools.optimize._utils import select_input_output_channel_axis

    given, made = select_input_output_channel_axis(op)
    return (1 if given is None else given), (0 if made is None else made)


def quantize(model: CoremlModel, job: LoweringJob) -> CoremlModel:
    """Store every weight of rank ≥ 2 in its module's scheme: ``job.scheme``, or the rule for it.

    With int8 activations, operations that multiply a float weight keep float activations. If all weights are float and
    not pruned, the model is returned unchanged.

    Raises:
        ConversionError: a glob of ``keep_float`` or ``rules`` matches no module, a weight stayed float unasked,
            or int8 activations have no calibration inputs.
    """
    if all(storage.keeps_weights for storage in job.scheme.storages):
        return model
    weights = float_weights(read_spec(model.package))
    stored = storage_of(weights, model, job)
    package = job.workdir / f"{job.component}.compressed.mlpackage"
    with converting(job.component, "quantization"):
        program = _read(model.package)
        if job.scheme.activations == "int8_static":
            narrow = frozenset(name for name, own in stored.items() if not own.weights.startswith("float"))
            ranges = measure_ranges(model.package, _calibration(job), job.ranges)
            quantize_activations(program, ranges, narrow)
        small = compress(program, stored)
        _write(program, package, job)
    left = float_weights(read_spec(package)) - (weights - stored.keys()) - small
    if left:
        first = min(left)
        asked = stored[first].weights if first in stored else job.scheme.weights
        raise ConversionError(
            f"{job.component}: {len(left)} weights stayed float although {asked} was requested, "
            f"first {first}; name their modules in keep_float, or check the checkpoint for infinite values"
        )
    return replace(model, package=package)


def _calibration(job: LoweringJob) -> Sequence[Arrays]:
    if not job.calibration:
        raise ConversionError(f"{job.component}: int8_static needs calibration inputs; give the recipe golden prompts")
    return job.calibration


def _read(package: Path) -> Any:
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = read_spec(package)
    return load(spec, spec.specificationVersion, file_weights_dir=str((package / WEIGHTS).parent))


def _write(program: Any, package: Path, job: LoweringJob) -> None:
    ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=deployment_target(job),
        compute_precision=ct.precision.FLOAT32,  # no new casts: the program already has its casts
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        package_dir=str(package),
    )
