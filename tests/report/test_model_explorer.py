"""Node data for Model Explorer: its format, nodes that the graph really has, and figures on the right operation."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from diagnose.test_attribute import Opened
from explained import attribution
from md_export.cli import cli
from md_export.diagnose.attribution.attribute import OpError
from md_export.errors import UsageError
from md_export.report.model_explorer import write_node_data
from md_export.targets.tflite.flatbuffer import read_model
from module_faults import scrambled, weight_places
from support import Exported

BROKEN = "decoder.mid_block.resnets.0.conv1"
FIGURES = ("local_snr_db", "cumulative_snr_db", "peak", "bytes")


def graph_of(path: Path) -> tuple[str, list[str], int]:
    """Read without our own code for it: name, ids as the adapters give them, bytes of constants that nodes read."""
    if path.suffix == ".tflite":
        model = read_model(path)
        graph = model.subgraphs[0]
        used = {int(index) for op in graph.operators for index in op.inputs if index >= 0}
        sizes = [model.buffers[graph.tensors[index].buffer].data for index in used]
        return (
            graph.name.decode(),
            [str(n) for n in range(len(graph.operators))],
            sum(len(x) for x in sizes if x is not None),
        )
    graph = onnx.load(path).graph
    used = {name for node in graph.node for name in node.input}
    sizes = [onnx.numpy_helper.to_array(item).nbytes for item in graph.initializer if item.name in used]
    return graph.name, [node.name for node in graph.node], sum(sizes)


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return values


@pytest.mark.parametrize(("target", "precision"), [("onnx", "int8"), ("tflite", "int8")])
def test_every_key_is_a_node_and_the_broken_one_is_red(
    copy_of: Exported, nano: Path, tmp_path: Path, target: str, precision: str
) -> None:
    decoder = Opened(copy_of(target, precision), "vae_decoder", nano)
    with scrambled(weight_places(decoder.path)[BROKEN]):
        found = decoder.blame()
    name, nodes, size = graph_of(decoder.path)
    assert len(set(nodes)) == len(nodes)
    files = write_node_data(found, tmp_path / "x.json")
    assert [path.name for path in files] == [f"x-{figure}.json" for figure in FIGURES]
    for path in files:
        ((graph, data),) = read(path).items()
        assert graph == name
        assert set(data) == {"name", "results", "gradient" if path.stem == "x-bytes" else "thresholds"}
        assert data["results"].keys() <= set(nodes)
        assert all(list(one) == ["value"] and math.isfinite(one["value"]) for one in data["results"].values())
    local, _, peak, stored = (read(path)[name] for path in files)
    assert sum(one["value"] for one in stored["results"].values()) >= size
    worst = min(local["results"], key=lambda node: local["results"][node]["value"])
    assert next(op for op in found.ops if op.node == worst).module == BROKEN
    red = next(item for item in local["thresholds"] if local["results"][worst]["value"] <= item["value"])
    assert red["bgColor"] == "#d6554c"
    assert len(local["results"]) >= 0.5 * found.matched
    assert peak["results"].keys() >= local["results"].keys()


def op(node: str, **figures: float | None) -> OpError:
    return OpError(
        node, "Conv", "conv", 0, **{"cumulative_snr_db": None, "local_snr_db": None, "peak": None, **figures}
    )


def test_what_is_not_known_is_left_out_and_what_is_not_finite_is_the_largest(tmp_path: Path) -> None:
    ops = (op("a", peak=math.inf), op("b", peak=math.nan, local_snr_db=0.0), op("c"))
    local, cumulative, peak, stored = map(
        read, write_node_data(dataclasses.replace(attribution(), graph="main", ops=ops), tmp_path / "x.json")
    )
    assert local["main"]["results"] == {"b": {"value": 0.0}}
    assert cumulative["main"]["results"] == stored["main"]["results"] == {}
    assert {node: one["value"] > 1e38 for node, one in peak["main"]["results"].items()} == {"a": True, "b": True}
    assert peak["main"]["thresholds"][-1]["value"] >= peak["main"]["results"]["a"]["value"]


def test_formats_that_model_explorer_does_not_read(tmp_path: Path) -> None:
    package = tmp_path / "unet.mlpackage"
    package.mkdir()
    result = CliRunner().invoke(cli, ["attribute", str(package), "--model-explorer", str(tmp_path / "x.json")])
    assert isinstance(result.exception, UsageError)
    assert "shows .tflite and .onnx files, not unet.mlpackage" in str(result.exception)
