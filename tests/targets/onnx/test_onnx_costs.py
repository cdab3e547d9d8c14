"""Multiply-adds and bytes of small graphs, against counts made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from md_export.errors import RuntimeFault
from md_export.targets.onnx.describe import costs

SINGLE = 4  # bytes of float32


def saved(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Any], x: tuple[int, ...], y: tuple[int, ...], path: Path
) -> Path:
    """``x`` → ``y`` in float32; ``z`` is another input where a node takes it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    if any("z" in node.input for node in nodes):
        inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (2, 4, 5)))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"module/{kind}", **attributes)


def ones(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


X, LEFT, OUT = (1, 4, 8, 7), (2, 3, 4), (2, 3, 5)
PRODUCT = 2 * 3 * 4 * 5


@pytest.mark.parametrize(
    ("one", "weight", "x", "y", "work", "macs"),
    [
        (node("Conv", "x w", pads=[1] * 4, group=2), ones(6, 2, 3, 3), X, (1, 6, 8, 7), "convolution", 56 * 6 * 18),
        (node("Conv", "x w"), ones(6, 4, 1, 1), X, (1, 6, 8, 7), "matrix product", 56 * 6 * 4),
        (node("ConvTranspose", "x w", strides=[2, 2]), ones(4, 6, 2, 2), X, (1, 6, 16, 14), "convolution", 56 * 4 * 24),
        (node("MatMul", "x w"), ones(4, 5), LEFT, OUT, "matrix product", PRODUCT),
        (node("MatMul", "x z"), None, LEFT, OUT, "matrix product", PRODUCT),
        (node("Gemm", "x w", transA=1), ones(4, 5), (4, 3), (3, 5), "matrix product", 3 * 4 * 5),
        (node("Einsum", "x z", equation="bmk,bkn->bmn"), None, LEFT, OUT, "matrix product", PRODUCT),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_what_multiplies(
    one: onnx.NodeProto, weight: Any, x: tuple[int, ...], y: tuple[int, ...], work: str, macs: int, tmp_path: Path
) -> None:
    (op,) = costs(saved([one], {} if weight is None else {"w": weight}, x, y, tmp_path / "m.onnx"))
    assert (op.work, op.macs, op.arithmetic, op.module) == (work, macs, "float32", "module")
    assert op.weight_bytes == SINGLE * op.weights == (0 if weight is None else weight.nbytes)
    assert op.written_bytes == SINGLE * np.prod(y)


def test_integers_between_pairs_and_in_constants(tmp_path: Path) -> None:
    """x → Q → DQ → MatMul(· , DQ(int8)) → Q → DQ → Relu: what a phone computes in int8, and nothing besides."""
    scale, zero = np.float32(0.1), np.uint8(3)
    nodes = [
        node("QuantizeLinear", "x s z0", "q"),
        node("DequantizeLinear", "q s z0", "r"),
        node("DequantizeLinear", "w s", "v"),
        node("MatMul", "r v", "m"),
        node("QuantizeLinear", "m s z0", "mq"),
        node("DequantizeLinear", "mq s z0", "mr"),
        node("Relu", "mr"),
    ]
    constants = {"s": np.array(scale), "z0": np.array(zero), "w": ones(4, 5, dtype=np.int8)}
    product, relu = costs(saved(nodes, constants, (2, 3, 4), (2, 3, 5), tmp_path / "m.onnx"))
    assert (product.kind, product.arithmetic, product.macs) == ("MatMul", "int8", 2 * 3 * 4 * 5)
    assert 4 * 5 <= product.weight_bytes <= 4 * 5 + SINGLE
    assert (product.read_bytes, product.written_bytes) == (2 * 3 * 4, 2 * 3 * 5)
    assert (relu.kind, relu.read_bytes, relu.written_bytes) == ("Relu", 30, SINGLE * 30)


def test_of_a_table_only_the_rows_that_are_read(tmp_path: Path) -> None:
    table, ids = ones(100, 8), np.arange(3)
    nodes = [node("Gather", "w i", "g"), node("Add", "x g")]
    gather, add = costs(saved(nodes, {"w": table, "i": ids}, (3, 8), (3, 8), tmp_path / "m.onnx"))
    assert (gather.weights, gather.weight_bytes) == (24, SINGLE * 24)
    assert (add.weight_bytes, add.read_bytes) == (0, 2 * SINGLE * 24)


def test_moves_and_views(tmp_path: Path) -> None:
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("Reshape", "t s")]
    move, view = costs(saved(nodes, {"s": np.array([6])}, (2, 3), (6,), tmp_path / "m.onnx"))
    assert move.is_layout_move and move.activation_bytes == 2 * SINGLE * 6
    assert view.work == "view" and view.weight_bytes == 0


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(RuntimeFault, match=r"m\.onnx"):
        costs(tmp_path / "m.onnx")
