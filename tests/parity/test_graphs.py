"""The graph of an artifact beside that of a second lowering: every edit is named, and rounding is none."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from md_export.parity.graphs import graph_lines
from md_export.parity.selftest import graphs
from md_export.parity.selftest.graphs import Edit
from md_export.parity.selftest.sandbox import NotApplicable
from md_export.targets import TARGETS
from md_export.targets.stored_graph import EditableGraph, Step, StoredConstant, StoredGraph
from support import Exported

EDITS: tuple[Edit, ...] = (
    graphs.move_padding,
    graphs.widen_dilation,
    graphs.widen_epsilon,
    graphs.other_softmax,
    graphs.other_kind,
    graphs.drop_bias,
    graphs.skip_sum,
    graphs.exchange_operands,
    graphs.exchange_weights,
    graphs.add_unread,
    graphs.hold_inline,
    graphs.plant_trigger,
)
# What a format has not: LiteRT's convolutions pad by a word, Core AI's norms are graphs of their own.
LACKS = {
    "onnx": {"widen_dilation"},
    "coreml": {"widen_dilation", "hold_inline"},
    "tflite": {"move_padding", "hold_inline"},
    "coreai": {"widen_dilation", "hold_inline", "widen_epsilon", "add_unread"},
}
EXPORTS = [("onnx", "int8"), ("coreml", "fp16"), ("tflite", "int8"), ("coreai", "int8")]


def edited(source: Path, folder: Path, target: str, edit: Edit) -> Path:
    """A copy of an artifact after an edit."""
    copy = folder / edit.__name__ / source.name
    copy.parent.mkdir()
    shutil.copytree(source, copy) if source.is_dir() else shutil.copyfile(source, copy)
    with TARGETS[target].open().edit_graph(copy) as graph:
        edit(graph)
    return copy


@pytest.mark.parametrize(("target", "precision"), EXPORTS)
def test_every_edit_of_a_graph_is_named(exported: Exported, tmp_path: Path, target: str, precision: str) -> None:
    read, silent, found = TARGETS[target].open().graph, set[str](), set[str]()
    for component in ("vae_decoder", "text_encoder"):
        source = next(exported(target, precision).glob(f"{component}.*"))
        (tmp_path / component).mkdir()
        assert not list(graph_lines(read(source), read(source)))
        for edit in EDITS:
            try:
                copy = edited(source, tmp_path / component, target, edit)
            except NotApplicable:
                continue
            found.add(edit.__name__)
            if not list(graph_lines(read(copy), read(source))):
                silent.add(edit.__name__)
    assert silent == set()
    assert found == {edit.__name__ for edit in EDITS} - LACKS[target]


@pytest.mark.parametrize(("target", "precision"), EXPORTS)
def test_a_graph_that_is_opened_and_saved_is_the_same(
    exported: Exported, tmp_path: Path, target: str, precision: str
) -> None:
    source = next(exported(target, precision).glob("text_encoder.*"))
    read = TARGETS[target].open().graph

    def nothing(_: EditableGraph) -> None:
        pass

    assert not list(graph_lines(read(edited(source, tmp_path, target, nothing)), read(source)))


def test_what_is_said_of_a_trigger(exported: Exported, tmp_path: Path) -> None:
    source = exported("onnx", "int8") / "text_encoder.onnx"
    read = TARGETS["onnx"].open().graph
    (line,) = graph_lines(read(edited(source, tmp_path, "onnx", graphs.plant_trigger)), read(source))
    assert line.startswith("operations of no module: ")
    assert {"Equal", "Cast", "ReduceMax"} <= set(line.partition(": ")[2].split("; "))


def graph_of(scale: float = 1.0, kind: str = "Conv", axis: str = "1", reads: str = "x") -> StoredGraph:
    """Two operations with a weight, a calibrated integer and an axis; names of values differ from graph to graph."""
    mark = f"{scale}{kind}{axis}"
    weight = np.linspace(1, 2, 64, dtype=np.float32) * np.float32(scale)
    return StoredGraph(
        inputs={"x": "x float32[1, 4]"},
        outputs={"y": f"{mark}y"},
        steps=(
            Step(kind, ("conv",), ("x", f"{mark}w"), (f"{mark}c",), {"axis": axis}),
            Step("Add", ("",), (f"{mark}c", "x" if reads == "x" else f"{mark}c"), (f"{mark}y",)),
        ),
        constants={f"{mark}w": StoredConstant("float32[64]", lambda: weight)},
    )


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (graph_of(1 + 1e-5), None),
        (graph_of(1.01), "Conv of conv: operand 1 is not the constant that the checkpoint gives"),
        (graph_of(axis="2"), "Conv of conv: axis is 2, the checkpoint gives 1"),
        (graph_of(kind="Gemm"), "operations of no module: Gemm of conv"),
        (graph_of(reads="c"), "Add reads other values than the checkpoint's graph"),
        (
            dataclasses.replace(graph_of(), rest="opset 19"),
            "other fields of the graph: opset 19, the checkpoint gives nothing",
        ),
        (
            dataclasses.replace(graph_of(), outputs={"y": "x"}),
            "output y of the graph is another value than the checkpoint gives",
        ),
    ],
)
def test_what_is_said_of_a_difference(other: StoredGraph, line: str | None) -> None:
    found = list(graph_lines(other, graph_of()))
    assert found[:1] == ([] if line is None else [line])


Close = Callable[[np.ndarray], np.ndarray]


@pytest.mark.parametrize(
    ("values", "change", "same"),
    [
        (np.array([3], np.uint8), lambda x: x + 1, True),
        (np.array([3], np.uint8), lambda x: x + 2, False),
        (np.array([1, 77], np.int64), lambda x: x + 1, False),
        (np.arange(100, dtype=np.int8), lambda x: np.where(x < 8, x + 1, x), True),
        (np.arange(100, dtype=np.int8), lambda x: x[::-1], False),
    ],
)
def test_calibrated_integers_may_differ_by_one_and_shapes_may_not(
    values: np.ndarray, change: Close, same: bool
) -> None:
    """A zero point that another processor rounds the other way is no edit; a shape or an axis is exact."""

    def holding(held: np.ndarray) -> StoredGraph:
        return StoredGraph({}, {"y": "y"}, (Step("Use", (), ("c",), ("y",)),), {"c": StoredConstant("c", lambda: held)})

    found = list(graph_lines(holding(change(values).astype(values.dtype)), holding(values)))
    assert (not found) == same
