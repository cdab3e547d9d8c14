"""Which op runs which kernel, by the opset that introduced or redefined it."""

from __future__ import annotations

import torch

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.bind import Kernel
from md_export.targets.coreml.mil.graph import OLDEST_OPSET, Op
from md_export.targets.coreml.mil.kernels import compression as compress
from md_export.targets.coreml.mil.kernels import conv, image, layers
from md_export.targets.coreml.mil.kernels import elementwise as each
from md_export.targets.coreml.mil.kernels import image_sampling as sampling
from md_export.targets.coreml.mil.kernels import scatter_gather as scatter
from md_export.targets.coreml.mil.kernels import tensor_operation as tensor
from md_export.targets.coreml.mil.kernels import tensor_transformation as move

IOS15: dict[str, Kernel] = {
    "clamped_relu": layers.clamped_relu,
    "elu": layers.elu,
    "gelu": layers.gelu,
    "leaky_relu": layers.leaky_relu,
    "linear_activation": layers.linear_activation,
    "prelu": layers.prelu,
    "relu": layers.relu,
    "relu6": layers.relu6,
    "scaled_tanh": layers.scaled_tanh,
    "sigmoid": layers.sigmoid,
    "sigmoid_hard": layers.sigmoid_hard,
    "silu": layers.silu,
    "softmax": layers.softmax,
    "softplus": layers.softplus,
    "softplus_parametric": layers.softplus_parametric,
    "softsign": layers.softsign,
    "thresholded_relu": layers.thresholded_relu,
    "abs": each.of_one(torch.abs),
    "acos": each.of_one(torch.acos),
    "asin": each.of_one(torch.asin),
    "atan": each.of_one(torch.atan),
    "atanh": each.of_one(torch.atanh),
    "cast": each.cast,
    "ceil": each.of_one(torch.ceil),
    "clip": each.clip,
    "cos": each.of_one(torch.cos),
    "cosh": each.of_one(torch.cosh),
    "erf": each.of_one(torch.erf),
    "exp": each.of_one(torch.exp),
    "exp2": each.exp2,
    "floor": each.of_one(torch.floor),
    "inverse": each.inverse,
    "log": each.log,
    "logical_not": each.of_one(torch.logical_not),
    "round": each.of_one(torch.round),
    "rsqrt": each.rsqrt,
    "sign": each.sign,
    "sin": each.of_one(torch.sin),
    "sinh": each.of_one(torch.sinh),
    "sqrt": each.of_one(torch.sqrt),
    "square": each.square,
    "tan": each.of_one(torch.tan),
    "tanh": each.of_one(torch.tanh),
    "threshold": each.threshold,
    "add": each.add,
    "equal": each.of_two(torch.eq),
    "floor_div": each.of_two(torch.floor_divide),
    "greater": each.of_two(torch.gt),
    "greater_equal": each.of_two(torch.ge),
    "less": each.of_two(torch.lt),
    "less_equal": each.of_two(torch.le),
    "logical_and": each.of_two(torch.logical_and),
    "logical_or": each.of_two(torch.logical_or),
    "logical_xor": each.of_two(torch.logical_xor),
    "maximum": each.of_two(torch.maximum),
    "minimum": each.of_two(torch.minimum),
    "mod": each.of_two(torch.remainder),
    "mul": each.mul,
    "not_equal": each.of_two(torch.ne),
    "pow": each.pow_,
    "real_div": each.real_div,
    "select": each.select,
    "sub": each.sub,
    "conv": conv.conv,
    "conv_transpose": conv.conv_transpose,
    "linear": layers.linear,
    "matmul": layers.matmul,
    "einsum": layers.einsum,
    "batch_norm": layers.batch_norm,
    "instance_norm": layers.instance_norm,
    "l2_norm": layers.l2_norm,
    "layer_norm": layers.layer_norm,
    "local_response_norm": layers.local_response_norm,
    "avg_pool": conv.avg_pool,
    "l2_pool": conv.l2_pool,
    "max_pool": conv.max_pool,
    "reduce_argmax": tensor.reduce_argmax,
    "reduce_argmin": tensor.reduce_argmin,
    "reduce_l1_norm": tensor.reduce_l1_norm,
    "reduce_l2_norm": tensor.reduce_l2_norm,
    "reduce_log_sum": tensor.reduce_log_sum,
    "reduce_log_sum_exp": tensor.reduce_log_sum_exp,
    "reduce_max": tensor.reduce_max,
    "reduce_mean": tensor.reduce_mean,
    "reduce_min": tensor.reduce_min,
    "reduce_prod": tensor.reduce_prod,
    "reduce_sum": tensor.reduce_sum,
    "reduce_sum_square": tensor.reduce_sum_square,
    "gather": scatter.gather,
    "gather_along_axis": scatter.gather_along_axis,
    "gather_nd": scatter.gather_nd,
    "scatter": scatter.scatter,
    "scatter_along_axis": scatter.scatter_along_axis,
    "scatter_nd": scatter.scatter_nd,
    "argsort": tensor.argsort,
    "band_part": tensor.band_part,
    "concat": tensor.concat,
    "cumsum": tensor.cumsum,
    "fill": tensor.fill,
    "flatten2d": tensor.flatten2d,
    "identity": tensor.identity,
    "non_maximum_suppression": image.non_maximum_suppression,
    "non_zero": tensor.non_zero,
    "one_hot": tensor.one_hot,
    "pad": tensor.pad,
    "range_1d": tensor.range_1d,
    "shape": tensor.shape,
    "split": tensor.split,
    "stack": tensor.stack,
    "tile": tensor.tile,
    "topk": tensor.topk,
    "batch_to_space": move.batch_to_space,
    "depth_to_space": move.depth_to_space,
    "expand_dims": move.expand_dims,
    "pixel_shuffle": move.pixel_shuffle,
    "reshape": move.reshape,
    "reverse": move.reverse,
    "reverse_sequence": move.reverse_sequence,
    "slice_by_index": move.slice_by_index,
    "slice_by_size": move.slice_by_size,
    "sliding_windows": move.sliding_windows,
    "space_to_batch": move.space_to_batch,
    "space_to_depth": move.space_to_depth,
    "squeeze": move.squeeze,
    "transpose": move.transpose,
    "affine": sampling.affine,
    "crop": image.crop,
    "crop_resize": sampling.crop_resize,
    "resample": sampling.resample,
    "resize_bilinear": image.resize_bilinear,
    "resize_nearest_neighbor": image.resize_nearest_neighbor,
    "upsample_bilinear": image.upsample_bilinear,
    "upsample_nearest_neighbor": image.upsample_nearest_neighbor,
}

IOS16: dict[str, Kernel] = {
    "constexpr_affine_dequantize": compress.affine_dequantize,
    "constexpr_cast": compress.constexpr_cast,
    "constexpr_lut_to_dense": compress.lut_to_dense_ios16,
    "constexpr_sparse_to_dense": compress.sparse_to_dense_ios16,
    "fill_like": tensor.fill_like,
    "pixel_unshuffle": move.pixel_unshuffle,
    "reshape_like": move.reshape_like,
}

IOS17: dict[str, Kernel] = {
    "crop_resize": sampling.crop_resize_ios17,
    "dequantize": compress.dequantize,
    "gather": scatter.gather_ios17,
    "gather_along_axis": scatter.gather_along_axis_ios17,
    "gather_nd": scatter.gather_nd_ios17,
    "non_maximum_suppression": image.non_maximum_suppression_ios17,
    "quantize": compress.quantize,
    "reshape": move.reshape_ios17,
    "resize": image.resize,
    "scatter": scatter.scatter_ios17,
    "scatter_along_axis": scatter.scatter_along_axis_ios17,
    "scatter_nd": scatter.scatter_nd_ios17,
}

IOS18: dict[str, Kernel] = {
    "constexpr_blockwise_shift_scale": compress.blockwise_shift_scale,
    "constexpr_lut_to_dense": compress.lut_to_dense,
    "constexpr_lut_to_sparse": compress.lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": compress.sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": compress.sparse_to_dense,
    "read_state": tensor.read_state,
    "scaled_dot_product_attention": layers.scaled_dot_product_attention,
    "slice_update": move.slice_update,
    "write_state": tensor.write_state,
}

# Opset numbers as in "CoreML5"; iOS26's CoreML9 revises nothing that is listed here.
TABLE: dict[int, dict[str, Kernel]] = {OLDEST_OPSET: IOS15, 6: IOS16, 7: IOS17, 8: IOS18}


def kernel_for(target: Op, opset: int) -> Kernel:
    """The kernel of an op in a program of this opset.

    Raises:
        RuntimeFault: names the op, its outputs and the opset.
    """
    for version in sorted((number for number in TABLE if number <= opset), reverse=True):
        if target.kind in TABLE[version]:
            return TABLE[version][target.kind]
    raise RuntimeFault(f"{target}: this runtime has no op {target.kind} of opset CoreML{opset}")
