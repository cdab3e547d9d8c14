"""Which op runs which kernel, by the opset that introduced or redefined it."""

from __future__ import annotations

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.bind import Kernel
from md_export.targets.coreml.mil.graph import OLDEST_OPSET, Op
from md_export.targets.coreml.mil.kernels import activation as act
from md_export.targets.coreml.mil.kernels import compression as comp
from md_export.targets.coreml.mil.kernels import conv as conv
from md_export.targets.coreml.mil.kernels import elementwise_binary as binary
from md_export.targets.coreml.mil.kernels import elementwise_unary as unary
from md_export.targets.coreml.mil.kernels import image_resizing as resizing
from md_export.targets.coreml.mil.kernels import image_sampling as sampling
from md_export.targets.coreml.mil.kernels import linear as lin
from md_export.targets.coreml.mil.kernels import normalization as norm
from md_export.targets.coreml.mil.kernels import pool as pool
from md_export.targets.coreml.mil.kernels import reduction as red
from md_export.targets.coreml.mil.kernels import scatter_gather as sg
from md_export.targets.coreml.mil.kernels import state as state
from md_export.targets.coreml.mil.kernels import suppression as nms
from md_export.targets.coreml.mil.kernels import tensor_operation as op
from md_export.targets.coreml.mil.kernels import tensor_transformation as move

IOS15: dict[str, Kernel] = {
    "clamped_relu": act.clamped_relu,
    "elu": act.elu,
    "gelu": act.gelu,
    "leaky_relu": act.leaky_relu,
    "linear_activation": act.linear_activation,
    "prelu": act.prelu,
    "relu": act.relu,
    "relu6": act.relu6,
    "scaled_tanh": act.scaled_tanh,
    "sigmoid": act.sigmoid,
    "sigmoid_hard": act.sigmoid_hard,
    "silu": act.silu,
    "softmax": act.softmax,
    "softplus": act.softplus,
    "softplus_parametric": act.softplus_parametric,
    "softsign": act.softsign,
    "thresholded_relu": act.thresholded_relu,
    "abs": unary.abs_,
    "acos": unary.acos,
    "asin": unary.asin,
    "atan": unary.atan,
    "atanh": unary.atanh,
    "cast": unary.cast,
    "ceil": unary.ceil,
    "clip": unary.clip,
    "cos": unary.cos,
    "cosh": unary.cosh,
    "erf": unary.erf,
    "exp": unary.exp,
    "exp2": unary.exp2,
    "floor": unary.floor,
    "inverse": unary.inverse,
    "log": unary.log,
    "logical_not": unary.logical_not,
    "round": unary.round_,
    "rsqrt": unary.rsqrt,
    "sign": unary.sign,
    "sin": unary.sin,
    "sinh": unary.sinh,
    "sqrt": unary.sqrt,
    "square": unary.square,
    "tan": unary.tan,
    "tanh": unary.tanh,
    "threshold": unary.threshold,
    "add": binary.add,
    "equal": binary.equal,
    "floor_div": binary.floor_div,
    "greater": binary.greater,
    "greater_equal": binary.greater_equal,
    "less": binary.less,
    "less_equal": binary.less_equal,
    "logical_and": binary.logical_and,
    "logical_or": binary.logical_or,
    "logical_xor": binary.logical_xor,
    "maximum": binary.maximum,
    "minimum": binary.minimum,
    "mod": binary.mod,
    "mul": binary.mul,
    "not_equal": binary.not_equal,
    "pow": binary.pow_,
    "real_div": binary.real_div,
    "select": binary.select,
    "sub": binary.sub,
    "conv": conv.conv,
    "conv_transpose": conv.conv_transpose,
    "linear": lin.linear,
    "matmul": lin.matmul,
    "einsum": lin.einsum,
    "batch_norm": norm.batch_norm,
    "instance_norm": norm.instance_norm,
    "l2_norm": norm.l2_norm,
    "layer_norm": norm.layer_norm,
    "local_response_norm": norm.local_response_norm,
    "avg_pool": pool.avg_pool,
    "l2_pool": pool.l2_pool,
    "max_pool": pool.max_pool,
    "reduce_argmax": red.reduce_argmax,
    "reduce_argmin": red.reduce_argmin,
    "reduce_l1_norm": red.reduce_l1_norm,
    "reduce_l2_norm": red.reduce_l2_norm,
    "reduce_log_sum": red.reduce_log_sum,
    "reduce_log_sum_exp": red.reduce_log_sum_exp,
    "reduce_max": red.reduce_max,
    "reduce_mean": red.reduce_mean,
    "reduce_min": red.reduce_min,
    "reduce_prod": red.reduce_prod,
    "reduce_sum": red.reduce_sum,
    "reduce_sum_square": red.reduce_sum_square,
    "gather": sg.gather,
    "gather_along_axis": sg.gather_along_axis,
    "gather_nd": sg.gather_nd,
    "scatter": sg.scatter,
    "scatter_along_axis": sg.scatter_along_axis,
    "scatter_nd": sg.scatter_nd,
    "argsort": op.argsort,
    "band_part": op.band_part,
    "concat": op.concat,
    "cumsum": op.cumsum,
    "fill": op.fill,
    "flatten2d": op.flatten2d,
    "identity": op.identity,
    "non_maximum_suppression": nms.non_maximum_suppression,
    "non_zero": op.non_zero,
    "one_hot": op.one_hot,
    "pad": op.pad,
    "range_1d": op.range_1d,
    "shape": op.shape,
    "split": op.split,
    "stack": op.stack,
    "tile": op.tile,
    "topk": op.topk,
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
    "crop": resizing.crop,
    "crop_resize": sampling.crop_resize,
    "resample": sampling.resample,
    "resize_bilinear": resizing.resize_bilinear,
    "resize_nearest_neighbor": resizing.resize_nearest_neighbor,
    "upsample_bilinear": resizing.upsample_bilinear,
    "upsample_nearest_neighbor": resizing.upsample_nearest_neighbor,
}

IOS16: dict[str, Kernel] = {
    "constexpr_affine_dequantize": comp.affine_dequantize,
    "constexpr_cast": comp.constexpr_cast,
    "constexpr_lut_to_dense": comp.lut_to_dense_ios16,
    "constexpr_sparse_to_dense": comp.sparse_to_dense_ios16,
    "fill_like": op.fill_like,
    "pixel_unshuffle": move.pixel_unshuffle,
    "reshape_like": move.reshape_like,
}

IOS17: dict[str, Kernel] = {
    "crop_resize": sampling.crop_resize_ios17,
    "dequantize": comp.dequantize,
    "gather": sg.gather_ios17,
    "gather_along_axis": sg.gather_along_axis_ios17,
    "gather_nd": sg.gather_nd_ios17,
    "non_maximum_suppression": nms.non_maximum_suppression_ios17,
    "quantize": comp.quantize,
    "reshape": move.reshape_ios17,
    "resize": resizing.resize,
    "scatter": sg.scatter_ios17,
    "scatter_along_axis": sg.scatter_along_axis_ios17,
    "scatter_nd": sg.scatter_nd_ios17,
}

IOS18: dict[str, Kernel] = {
    "constexpr_blockwise_shift_scale": comp.blockwise_shift_scale,
    "constexpr_lut_to_dense": comp.lut_to_dense,
    "constexpr_lut_to_sparse": comp.lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": comp.sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": comp.sparse_to_dense,
    "read_state": state.read_state,
    "scaled_dot_product_attention": lin.scaled_dot_product_attention,
    "slice_update": move.slice_update,
    "write_state": state.write_state,
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
