"""Which op runs which kernel, by the opset that introduced or redefined it."""

from __future__ import annotations

import torch

from md_export.errors import RuntimeFault
from md_export.mil.bind import Kernel
from md_export.mil.graph import OLDEST_OPSET, Op
from md_export.mil.kernels import compression as compress
from md_export.mil.kernels import conv, image, layers
from md_export.mil.kernels import elementwise as each
from md_export.mil.kernels import image_sampling as sampling
from md_export.mil.kernels import scatter_gather as scatter
from md_export.mil.kernels import tensor_operation as tensor
from md_export.mil.kernels import tensor_transformation as move


def _named(*kernels: Kernel, prefix: str = "") -> dict[str, Kernel]:
    """Kernels by their ops: a kernel has its op's name, without the prefix and with the opset that redefined the op."""
    return {prefix + kernel.__name__.partition("_ios")[0]: kernel for kernel in kernels}


IOS15: dict[str, Kernel] = {
    **_named(
        layers.clamped_relu, layers.elu, layers.gelu, layers.leaky_relu, layers.linear_activation, layers.prelu,
        layers.relu, layers.relu6, layers.scaled_tanh, layers.sigmoid, layers.sigmoid_hard, layers.silu,
        layers.softmax, layers.softplus, layers.softplus_parametric, layers.softsign, layers.thresholded_relu,
        layers.linear, layers.matmul, layers.einsum, layers.batch_norm, layers.instance_norm, layers.l2_norm,
        layers.layer_norm, layers.local_response_norm,
        conv.conv, conv.conv_transpose, conv.avg_pool, conv.l2_pool, conv.max_pool,
        each.cast, each.clip, each.exp2, each.inverse, each.log, each.rsqrt, each.sign, each.square,
        each.threshold, each.add, each.mul, each.real_div, each.select, each.sub,
        tensor.reduce_argmax, tensor.reduce_argmin, tensor.reduce_l1_norm, tensor.reduce_l2_norm,
        tensor.reduce_log_sum, tensor.reduce_log_sum_exp, tensor.reduce_max, tensor.reduce_mean,
        tensor.reduce_min, tensor.reduce_prod, tensor.reduce_sum, tensor.reduce_sum_square, tensor.argsort,
        tensor.band_part, tensor.concat, tensor.cumsum, tensor.fill, tensor.flatten2d, tensor.identity,
        tensor.non_zero, tensor.one_hot, tensor.pad, tensor.range_1d, tensor.shape, tensor.split, tensor.stack,
        tensor.tile, tensor.topk,
        scatter.gather, scatter.gather_along_axis, scatter.gather_nd, scatter.scatter,
        scatter.scatter_along_axis, scatter.scatter_nd,
        move.batch_to_space, move.depth_to_space, move.expand_dims, move.pixel_shuffle, move.reshape,
        move.reverse, move.reverse_sequence, move.slice_by_index, move.slice_by_size, move.sliding_windows,
        move.space_to_batch, move.space_to_depth, move.squeeze, move.transpose,
        image.non_maximum_suppression, image.crop, image.resize_bilinear, image.resize_nearest_neighbor,
        image.upsample_bilinear, image.upsample_nearest_neighbor,
        sampling.affine, sampling.crop_resize, sampling.resample,
    ),
    **_named(*map(each.of_one, (
        torch.abs, torch.acos, torch.asin, torch.atan, torch.atanh, torch.ceil, torch.cos, torch.cosh,
        torch.erf, torch.exp, torch.floor, torch.logical_not, torch.round, torch.sin, torch.sinh, torch.sqrt,
        torch.tan, torch.tanh,
    ))),
    **_named(*map(each.of_two, (torch.logical_and, torch.logical_or, torch.logical_xor, torch.maximum, torch.minimum))),
    "equal": each.of_two(torch.eq),
    "floor_div": each.of_two(torch.floor_divide),
    "greater": each.of_two(torch.gt),
    "greater_equal": each.of_two(torch.ge),
    "less": each.of_two(torch.lt),
    "less_equal": each.of_two(torch.le),
    "mod": each.of_two(torch.remainder),
    "not_equal": each.of_two(torch.ne),
    "pow": each.pow_,
}  # fmt: skip

IOS16: dict[str, Kernel] = {
    **_named(compress.constexpr_cast, tensor.fill_like, move.pixel_unshuffle, move.reshape_like),
    **_named(
        compress.affine_dequantize, compress.lut_to_dense_ios16, compress.sparse_to_dense_ios16,
        prefix="constexpr_",
    ),
}  # fmt: skip

IOS17: dict[str, Kernel] = _named(
    sampling.crop_resize_ios17, compress.dequantize, scatter.gather_ios17, scatter.gather_along_axis_ios17,
    scatter.gather_nd_ios17, image.non_maximum_suppression_ios17, compress.quantize, move.reshape_ios17,
    image.resize, scatter.scatter_ios17, scatter.scatter_along_axis_ios17, scatter.scatter_nd_ios17,
)  # fmt: skip

IOS18: dict[str, Kernel] = {
    **_named(tensor.read_state, layers.scaled_dot_product_attention, move.slice_update, tensor.write_state),
    **_named(
        compress.blockwise_shift_scale, compress.lut_to_dense, compress.lut_to_sparse,
        compress.sparse_blockwise_shift_scale, compress.sparse_to_dense,
        prefix="constexpr_",
    ),
}  # fmt: skip

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
