"""Graphs of standard operators alone, in one piece for Core ML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from md_export.errors import ConversionError, RuntimeFault
from md_export.targets import TARGETS
from md_export.targets.onnx.clean import NAME
from md_export.targets.onnx.target import OnnxModel
from mobile_usability import coreml_partitions

target = TARGETS["onnx"].open()
COMPONENT_NAMES = ("text_encoder", "unet", "vae_decoder")


@pytest.mark.parametrize("component", COMPONENT_NAMES)
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_all_operators_are_standard_ones(component: str, scheme: str, artifact: Callable[..., Path]) -> None:
    model = onnx.load(artifact(component, scheme))
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert not any("::" in kind for kind in target.describe(artifact(component, scheme)).ops)


def test_another_operator_is_refused_and_named(artifact: Callable[..., Path], tmp_path: Path) -> None:
    model = onnx.load(artifact("vae_decoder", "fp32"))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    gelu = next(node for node in model.graph.node if node.op_type == "Sigmoid")
    gelu.op_type, gelu.domain = "QuickGelu", "com.microsoft"
    with pytest.raises(ConversionError, match=r"outside the ONNX standard: com\.microsoft::QuickGelu"):
        OnnxModel(ir.from_proto(model)).save(tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
    onnx.save(model, tmp_path / "y.onnx")
    assert target.describe(tmp_path / "y.onnx").ops["com.microsoft::QuickGelu"] == 1


@pytest.mark.parametrize("scheme", ["fp32", "fp16"])
@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_core_ml_takes_it_in_one_piece(component: str, scheme: str, artifact: Callable[..., Path]) -> None:
    found = coreml_partitions(artifact(component, scheme))
    assert (found.count, found.left) == (1, ())
    assert found.nodes == sum(target.describe(artifact(component, scheme)).ops.values())


def test_of_the_text_encoder_the_tables_stay_on_the_cpu(artifact: Callable[..., Path]) -> None:
    found = coreml_partitions(artifact("text_encoder", "fp32"))
    assert found.count == 1
    assert set(found.left) <= {"embeddings.token_embedding/Gather", "embeddings.position_embedding/Gather"}


def without_regions(path: Path, out: Path) -> Path:
    """As the exporter writes Resize."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "Resize":
            node.input[1] = ""
    onnx.save(model, out)
    return out


def with_a_dynamic_size(path: Path, out: Path) -> Path:
    """The first Resize computes its scales."""
    model = onnx.load(path)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    scales = onnx.helper.make_node("NonZero", [resize.input[0]], ["found"], name="scales/NonZero")
    cast = onnx.helper.make_node("Cast", ["found"], ["scales"], name="scales/Cast", to=onnx.TensorProto.FLOAT)
    resize.input[2] = "scales"
    at = list(model.graph.node).index(resize)
    model.graph.node.insert(at, cast)
    model.graph.node.insert(at, scales)
    del model.graph.value_info[:]
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("damage", [without_regions, with_a_dynamic_size])
def test_a_resize_of_unknown_shape_divides_it(
    damage: Callable[[Path, Path], Path], artifact: Callable[..., Path], tmp_path: Path
) -> None:
    assert coreml_partitions(damage(artifact("vae_decoder", "fp32"), tmp_path / "x.onnx")).count > 1


def test_the_region_changes_nothing(subject: Callable[..., Any], artifact: Callable[..., Path], tmp_path: Path) -> None:
    path, inputs = artifact("vae_decoder", "fp32"), subject("vae_decoder").held_out
    assert NAME in {tensor.name for tensor in onnx.load(path).graph.initializer}
    other = without_regions(path, tmp_path / "x.onnx")
    assert np.array_equal(target.load(path).run(inputs)["image"], target.load(other).run(inputs)["image"])


def test_shapes_that_contradict_each_other_are_an_error_of_ours(artifact: Callable[..., Path], tmp_path: Path) -> None:
    model = onnx.load(artifact("vae_decoder", "fp32"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(RuntimeFault, match=r"x\.onnx: its shapes cannot be inferred"):
        coreml_partitions(tmp_path / "x.onnx")
