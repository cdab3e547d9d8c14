"""Multiply-adds and bytes of single ops, against counts made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export.errors import RuntimeFault
from md_export.targets.operations import OpCost
from md_export.targets.tflite.describe import costs
from one_op import MODULE, OneOp

SINGLE = 4  # bytes of float32


def values(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


def cost(op: OneOp, folder: Path) -> OpCost:
    (found,) = costs(op.write(folder / "op.tflite"))
    return found


X, MAP = values(1, 8, 6, 4), (1, 8, 6, 5)


@pytest.mark.parametrize(
    ("op", "work", "macs", "weights"),
    [
        (OneOp("CONV_2D", (X, values(5, 3, 3, 4), values(5)), MAP), "convolution", 48 * 5 * 36, 185),
        (OneOp("CONV_2D", (X, values(5, 1, 1, 4), None), MAP), "matrix product", 48 * 5 * 4, 20),
        (OneOp("DEPTHWISE_CONV_2D", (X, values(1, 3, 3, 4), None), X.shape), "convolution", 48 * 4 * 9, 36),
        (OneOp("FULLY_CONNECTED", (values(7, 4), values(5, 4), None), (7, 5)), "matrix product", 7 * 5 * 4, 20),
        (
            OneOp("BATCH_MATMUL", (values(2, 3, 4), values(2, 4, 5)), (2, 3, 5), computed=(0, 1)),
            "matrix product",
            2 * 3 * 4 * 5,
            0,
        ),
        (OneOp("ADD", (values(2, 3), values(2, 3)), (2, 3)), "other", 0, 6),
    ],
    ids=lambda value: value.kind if isinstance(value, OneOp) else "",
)
def test_ops(op: OneOp, work: str, macs: int, weights: int, tmp_path: Path) -> None:
    found = cost(op, tmp_path)
    assert (found.kind, found.work, found.macs, found.weights) == (op.kind, work, macs, weights)
    assert (found.arithmetic, found.module) == ("float32", MODULE)
    assert found.weight_bytes == SINGLE * weights
    assert found.written_bytes == SINGLE * np.prod(op.shape)
    assert found.read_bytes == sum(SINGLE * value.size for value in op.inputs.values())


def test_a_transpose_moves_and_a_reshape_does_not(tmp_path: Path) -> None:
    order = np.array([1, 0], np.int32)
    moved = cost(OneOp("TRANSPOSE", (values(2, 3), order), (3, 2)), tmp_path)
    assert moved.is_layout_move and moved.weight_bytes == 0 and moved.activation_bytes == 2 * SINGLE * 6
    assert cost(OneOp("RESHAPE", (values(2, 3), order), (3, 2)), tmp_path).work == "view"


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"no model at all")
    with pytest.raises(RuntimeFault, match=r"m\.tflite"):
        costs(tmp_path / "m.tflite")
