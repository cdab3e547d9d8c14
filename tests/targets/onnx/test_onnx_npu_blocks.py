"""A component on an NPU's simulator block by block: cut between modules, right as a whole; what is wrong is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from md_export.cli import cli
from md_export.errors import ParityError
from md_export.parity.metrics import snr_db
from md_export.parity.npu import blocks
from md_export.parity.npu.blocks import Demand
from md_export.parity.npu.verify import hints, verify_on_npu
from md_export.spec.manifest import read_manifest
from md_export.spec.names import SOCS
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets.onnx.npu.cut import cut
from md_export.targets.onnx.npu.process import CutBlock, NpuLimits, cut_for_npu
from md_export.targets.onnx.run import UNOPTIMIZED, load
from planted import write_export

ELITE = SOCS["snapdragon-8-elite"].name


@pytest.fixture
def planted(tmp_path: Path, nano: Path, npu_simulator: None) -> Callable[[str], Path]:
    """``planted("curved")`` → an export with one decoder in float16: conv_in, middle, conv_out."""
    del npu_simulator

    def get(plant: str) -> Path:
        write_export(plant, tmp_path / plant, nano / "tokenizer", "onnx", "fp16")
        return tmp_path / plant

    return get


def _chained(found: tuple[CutBlock, ...], inputs: Arrays) -> dict[str, Array]:
    values = dict(inputs)
    for block in found:
        made = load(Path(block.exact), UNOPTIMIZED).run({name: values[name] for name in block.inputs})
        assert tuple(made) == block.outputs
        values |= made
    return values


@pytest.mark.slow
@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_blocks_in_a_row_compute_what_the_whole_does(
    component: str, subject: Any, artifact: Any, tmp_path: Path
) -> None:
    """Every boundary: skip connections, a value that several blocks read, the time embedding's float32."""
    path, given = artifact(component, "fp16"), subject(component).held_out
    found = cut(path, 8, tmp_path)
    assert len(found) >= 4 and len({block.title for block in found}) == len(found)
    values = _chained(found, given)
    (output,) = found[-1].outputs
    # Float32 from weights in float16: closer to torch than the whole with all its roundings.
    assert snr_db(values[output], subject(component).expected) > subject(component).snr_db(path) - 1.0


def test_what_marks_integers_is_on_both_sides_of_a_cut(tmp_path: Path) -> None:
    """Two convolutions on 8-bit values: each block gets and gives what the whole has there, to the last bit."""
    whole = tmp_path / "whole.onnx"
    onnx.save(_two_convolutions(), whole)
    (tmp_path / "cut").mkdir()
    first, last = cut(whole, 2, tmp_path / "cut")
    assert (first.title, last.title) == ("a", "b")
    assert first.outputs == last.inputs == ("p",)
    x = {"x": (np.arange(18, dtype=np.float32) / 9 - 1).reshape(1, 2, 3, 3)}
    wanted = load(whole, UNOPTIMIZED).run(x)["y"]
    assert np.array_equal(_chained((first, last), x)["y"], wanted) and len(np.unique(wanted)) > 8


def _two_convolutions() -> onnx.ModelProto:
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.05])
    zero = helper.make_tensor("z", TensorProto.UINT8, [], [128])
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [2, 2, 1, 1], [0.5, 0.25, -1, 0.3]) for name in "wv"]
    nodes = [
        *_marked("x"),
        helper.make_node("Conv", ["x.marked", "w"], ["p"], name="a/Conv"),
        *_marked("p"),
        helper.make_node("Conv", ["p.marked", "v"], ["r"], name="b/Conv"),
        *_marked("r", "y"),
    ]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 3, 3]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [given], [made], [scale, zero, *weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _marked(name: str, made: str = "") -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}.integers"], name=f"{name}_Q"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.integers", "s", "z"], [made or f"{name}.marked"], name=f"{name}_DQ"
        ),
    ]


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        (Demand(90.0, 1_000), None),
        (Demand(110.0, 1_000), "whole it would take about 220 s of 200 s"),
        (Demand(90.0, 3_000_000_000), r"whole it would take about 3.0 GB of 2.0 GB"),
    ],
)
def test_the_rule_that_cuts(demand: Demand, words: str | None) -> None:
    assert demand.too_much(NpuLimits(200.0, 2_000_000_000), 2) == words


@pytest.mark.slow
def test_too_much_for_one_process_is_done_in_blocks(
    planted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_START_BYTES", 10**15)
    (found,) = verify_on_npu(planted("resident"), None, ELITE, None, NpuLimits(300.0))
    (verdict,) = found.result.components
    assert verdict.faults == () and verdict.engine.why.startswith("whole it would take about 1000000.0 GB")
    assert [block.title for block in verdict.engine.blocks] == ["conv_in to middle", "conv_out"]
    assert verdict.parity is not None and 55 < verdict.parity.snr_db < 90
    assert all(block.nodes and block.snr_db and 45 < block.snr_db < 90 for block in verdict.engine.blocks)


@pytest.mark.slow
def test_a_damaged_block_is_named(planted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of the second block is changed in what is compiled, not in what the CPU computes."""

    def damaged(graph: Path, number: int, folder: Path) -> tuple[CutBlock, ...]:
        found = cut_for_npu(graph, number, folder)
        model = onnx.load(found[-1].file)
        largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(largest)
        largest.CopyFrom(onnx.numpy_helper.from_array((values * 1.1).astype(values.dtype), largest.name))
        onnx.save(model, found[-1].file)
        return found

    monkeypatch.setattr(blocks, "cut_for_npu", damaged)
    told = CliRunner().invoke(cli, ["verify", str(planted("resident")), "--npu", "--soc", ELITE, "--blocks"])
    assert isinstance(told.exception, ParityError) and told.exception.exit_code == 3
    assert "below the recipe's 55 dB; the block with the least on its own is conv_out, 3" in str(told.exception)
    assert "block by block (asked for)" in told.output and "2 blocks" in told.output


@pytest.mark.slow
def test_what_the_npu_refuses_in_a_block_is_named(planted: Callable[[str], Path]) -> None:
    told = CliRunner().invoke(cli, ["verify", str(planted("curved")), "--npu", "--soc", ELITE, "--blocks"])
    assert isinstance(told.exception, ParityError) and told.exception.exit_code == 3
    assert "block conv_in to middle: the NPU leaves 2 operations to the CPU: Sinh of middle" in str(told.exception)


def test_a_time_embedding_in_float16_is_pointed_at(tmp_path: Path, nano: Path) -> None:
    write_export("resident", tmp_path / "out", nano / "tokenizer", "onnx", "fp16")
    (entry,) = read_manifest(tmp_path / "out").artifacts
    timed = dataclasses.replace(entry, inputs=(*entry.inputs, TensorSpec("timestep", (1,), "float32")))
    (hint,) = hints(timed, ())
    assert hint.endswith("--rewrite fold_timestep")
    assert not list(hints(entry, ())) and not list(hints(dataclasses.replace(timed, activations="float32"), ()))
