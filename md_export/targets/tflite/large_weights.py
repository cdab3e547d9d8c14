"""Work around ai_edge_quantizer 0.10.0 on convolution weights over 32 MiB.

``uniform_quantize`` quantizes such a tensor in chunks and flattens it to rows of its last axis, but not
the scales, which keep the tensor's rank: "input operand has more dimensions than allowed by the axis
remapping". A weight given as a matrix whose one axis is the quantized one goes through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

# Where uniform_quantize starts to cut a tensor into chunks.
_CHUNK_BYTES: Final = 32 * 1024 * 1024


@contextmanager
def chunked_by_channel() -> Iterator[None]:
    """Hand large weights of rank over 2 to ``uniform_quantize`` as matrices."""
    from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor

    original = uniform_quantize_tensor.uniform_quantize

    def uniform_quantize(tensor_data: Any, quantization_params: Any, is_blockwise_quant: bool = False) -> Any:
        if tensor_data.ndim <= 2 or tensor_data.nbytes <= _CHUNK_BYTES or is_blockwise_quant:
            return original(tensor_data, quantization_params, is_blockwise_quant)
        matrix, params = as_matrix(tensor_data, quantization_params)
        return original(matrix, params).reshape(tensor_data.shape)

    uniform_quantize_tensor.uniform_quantize = uniform_quantize
    try:
        yield
    finally:
        uniform_quantize_tensor.uniform_quantize = original


def as_matrix(tensor: Any, params: Any) -> tuple[Any, Any]:
    """Views of a weight and its parameters of rank 2, quantized along axis 0 or 1 (or as a whole)."""
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
