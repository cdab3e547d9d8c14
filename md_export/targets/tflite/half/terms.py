"""Which sums an op forms, by its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from md_export.targets.tflite.half import functions, products
from md_export.targets.tflite.half.activations import OpValues
from md_export.targets.tflite.half.sums import Terms


def terms_of(values: OpValues) -> Terms | None:
    """The sums of one op; None for a kind that only moves data or is not known here."""
    rule = _KINDS.get(values.op.operator)
    return rule(values) if rule else None


_KINDS: Final[Mapping[str, Callable[[OpValues], Terms]]] = {
    "FULLY_CONNECTED": products.fully_connected,
    "BATCH_MATMUL": products.batch_matmul,
    "CONV_2D": products.convolution,
    "DEPTHWISE_CONV_2D": products.depthwise,
    "TRANSPOSE_CONV": products.transposed,
    "MEAN": functions.reduction,
    "SUM": functions.reduction,
    "ADD": functions.sum_of_two,
    "SUB": functions.sum_of_two,
    "MUL": functions.product_of_two,
    "SOFTMAX": functions.softmax,
    "RSQRT": functions.rsqrt,
    "EXP": functions.exp,
    "LOGISTIC": functions.logistic,
    "SIN": functions.wave,
    "COS": functions.wave,
}
