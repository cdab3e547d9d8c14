"""Weights of a program as integers, palettes or sparse data, by coremltools' own passes on the program as it is.

The public functions of ``coremltools.optimize.coreml`` run these passes and then every graph pass of a conversion once
more: ten times slower, and they wrap the indices of a gather a second time.

Constants are chosen by name, not by type of operation: equal constants of 100 elements and more are stored once, and
where a norm and a linear share a zero bias coremltools sees a conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from md_export.spec.scheme import QuantScheme
from md_export.spec.weight_storage import largest_divisor
from md_export.targets.coreml.storage import pays
from md_export.targets.coreml.vendor import cto
from md_export.targets.quantization.palette import palettize

# weight_threshold: coremltools would leave weights of up to 2048 elements as they are.
_ALL_SIZES: Final[Mapping[str, int]] = {"weight_threshold": 0}


def compress(program: Any, stored: Mapping[str, QuantScheme]) -> frozenset[str]:
    """Store each of these weights as its scheme says; all else is untouched.

    Where a block or group does not divide a weight's channels, the largest divisor above half of it is taken, and
    else the whole axis. A weight that a palette would not make smaller stays as it is.

    Args:
        program: of coremltools; changed in place.
        stored: scheme by name of the weight; all have the same activations and the same sparsity.

    Returns:
        Names of the weights that stay because a palette would not make them smaller.
    """
    from coremltools.optimize.coreml import _quantization_passes as passes

    weights = {op.name: op for op in _operations(program) if op.name in stored}
    small = frozenset(name for name, op in weights.items() if not _pays(op, stored[name]))
    chosen = {name: stored[name] for name in weights if name not in small}
    palettes = {name: _palette_config(weights[name], own) for name, own in chosen.items() if own.palette_bits}
    integers = {name: _linear_config(weights[name], own) for name, own in chosen.items() if _is_integer(own)}
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


def _is_integer(scheme: QuantScheme) -> bool:
    return scheme.weights.startswith("int")


def _operations(program: Any) -> list[Any]:
    return list(program.functions["main"].operations)


def _apply(kind: Callable[[Any], Any], program: Any, configs: Mapping[str, Any], joint: bool = False) -> None:
    step = kind(cto.OptimizationConfig(op_name_configs=dict(configs)))
    step.joint_compression = joint
    step.apply(program)


def _pruner(op: Any, scheme: QuantScheme) -> Any:
    """By a threshold of our own: coremltools 9.0 takes the percentile in float16, which is NaN for more than 65504
    elements, and leaves the weight whole."""
    threshold = float(np.percentile(np.abs(op.outputs[0].val.astype(np.float32)), 100 * (scheme.sparsity or 0)))
    return cto.OpThresholdPrunerConfig(threshold=threshold, minimum_sparsity_percentile=0.0, **_ALL_SIZES)


def _moved(configs: Mapping[str, Any], program: Any) -> dict[str, Any]:
    """The configurations under the names of the constants that hold the data of the weights after pruning."""
    made = {op.name: op for op in _operations(program)}
    return {made[f"{name}_sparsified"].inputs["nonzero_data"].op.name: config for name, config in configs.items()}


def _tables(program: Any) -> dict[str, Any]:
    """int8 for the tables of all palettes: only then does the Neural Engine multiply int8 by int8.

    coremltools takes one scale per tensor here and no other.
    """
    config = cto.OpLinearQuantizerConfig(dtype="int8", granularity="per_tensor", **_ALL_SIZES)
    palettes = [
        op for op in _operations(program) if op.op_type in ("constexpr_lut_to_dense", "constexpr_lut_to_sparse")
    ]
    return {op.inputs["lut"].op.name: config for op in palettes}


def _linear_config(op: Any, scheme: QuantScheme) -> Any:
    """Symmetric: the Neural Engine wants no zero points."""
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
    """Output channels that share a table; None where all do."""
    channels = op.outputs[0].shape[_axes(op)[1]]
    group = largest_divisor(channels, scheme.group_size) if scheme.group_size else channels
    return None if group == channels else group


def _axes(op: Any) -> tuple[int, int]:
    """Axes of the input and output channels of a weight, as its consumers read it."""
    from coremltools.optimize._utils import select_input_output_channel_axis

    given, made = select_input_output_channel_axis(op)
    return (1 if given is None else given), (0 if made is None else made)
