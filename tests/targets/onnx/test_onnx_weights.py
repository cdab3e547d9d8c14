"""Weights stored small and computed in float: what stands in the file, what it computes, and what is refused."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript.version_converter import convert_version
from torch import Tensor, nn

from md_export.errors import ConversionError
from md_export.parity.metrics import snr_db
from md_export.rewrites.split_wide_conv2d import split_wide_conv2d
from md_export.spec.sampler import OneStep
from md_export.spec.scheme import QuantScheme, WeightRule
from md_export.spec.tensors import TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import Lowered, LoweringJob
from md_export.targets.onnx.run import UNOPTIMIZED
from md_export.targets.onnx.stored import stored_weights
from md_export.targets.onnx.weights import OPSET

target = TARGETS["onnx"].open()

INT8 = QuantScheme("int8", "float32")
INT4 = QuantScheme("int4", "float32", "block", block_size=32)
TABLE = WeightRule(("table",), "int8")
MIXED = replace(
    INT4,
    keep_float=("kept",),
    rules=(TABLE, WeightRule(("pointwise",), "int8", "block", block_size=16), WeightRule(("tokens",), "float16")),
)
IDS = np.array([[3, 1, 4, 1, 5]], np.int32)


class Every(nn.Module):
    """Every kind of weight: rows, a matrix on tokens and one on a vector, convolutions of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 48)
        self.tokens = nn.Linear(48, 40)
        self.spatial = nn.Conv2d(40, 64, 3, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, groups=64)
        self.pointwise = nn.Conv2d(64, 96, 1)
        self.kept = nn.Conv2d(96, 64, 1)
        self.vector = nn.Linear(64, 7)

    def forward(self, ids: Tensor) -> Tensor:
        maps = self.tokens(self.table(ids)).transpose(1, 2).unsqueeze(2).expand(-1, -1, 3, -1)
        maps = self.kept(self.pointwise(self.depthwise(self.spatial(maps))))
        out: Tensor = self.vector(maps.mean((2, 3)))
        return out


# Input channels that share a scale where 32 were asked for: a divisor above 16, else all.
BLOCKS = {"tokens": 24, "spatial": 20, "depthwise": 1, "pointwise": 32, "kept": 32, "vector": 32}


def job_of(scheme: QuantScheme, workdir: Path) -> LoweringJob:
    torch.manual_seed(0)
    taken, made = TensorSpec("ids", IDS.shape, "int32"), TensorSpec("y", (1, 7), "float32")
    workdir.mkdir(exist_ok=True)
    given = {"ids": IDS}
    return LoweringJob("every", Every().eval(), (taken,), (made,), given, scheme, (given,), workdir)


def save(scheme: QuantScheme, path: Path) -> Path:
    job = job_of(scheme, path.parent)
    target.lower(job).quantize(job).save(path)
    return path


Saved = Callable[[QuantScheme], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """``saved(scheme)``: the file, exported once; do not change it."""
    root = tmp_path_factory.mktemp("weights")
    made: dict[QuantScheme, Path] = {}

    def get(scheme: QuantScheme) -> Path:
        if scheme not in made:
            made[scheme] = save(scheme, root / f"{len(made)}.onnx")
        return made[scheme]

    return get


@pytest.fixture(scope="module")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    return target.lower(job_of(replace(INT8, weights="float32"), tmp_path_factory.mktemp("lowered")))


@pytest.fixture
def mixed_copy(saved: Saved, tmp_path: Path) -> Path:
    """A mixed file that a test may change."""
    return Path(shutil.copy(saved(MIXED), tmp_path / "x.onnx"))


def rounded(weight: Tensor, levels: int, block: int) -> Tensor:
    """``[out, in, *kernel]`` with one scale for ``block`` input channels of an output channel; 0: for all of it."""
    out = torch.empty_like(weight)
    for row, made in zip(weight, out, strict=True):
        for first in range(0, len(row), block or len(row)):
            part = row[first : first + (block or len(row))]
            scale = (part.abs().max() if block else weight.abs().max()) / levels
            made[first : first + len(part)] = (part / scale).round() * scale
    return out


def computed(change: Callable[[str, Tensor], Tensor]) -> Any:
    """What torch computes once every weight is changed."""
    torch.manual_seed(0)
    module = Every().eval()
    with torch.no_grad():
        for name, layer in module.named_children():
            weight = layer.get_parameter("weight")
            weight.copy_(change(name, weight))
        return module(torch.from_numpy(IDS)).numpy()


def int4(name: str, weight: Tensor) -> Tensor:
    return rounded(weight, 127, weight.shape[1]) if name == "table" else rounded(weight, 7, BLOCKS[name])


def mixed(name: str, weight: Tensor) -> Tensor:
    special = {
        "kept": weight,
        "tokens": weight.half().float(),
        "pointwise": rounded(weight, 127, 16),
    }
    return special[name] if name in special else int4(name, weight)


@pytest.mark.parametrize(
    ("scheme", "change", "opset"),
    [
        (replace(INT4, rules=(TABLE,)), int4, OPSET),
        (MIXED, mixed, OPSET),
        (INT8, lambda _, weight: rounded(weight, 127, weight.shape[1]), 18),
        (replace(INT8, granularity="tensor"), lambda _, weight: rounded(weight, 127, 0), 18),
        (replace(INT8, weights="float16"), lambda _, weight: weight.half().float(), 18),
    ],
    ids=["int4", "mixed", "int8", "int8-tensor", "float16"],
)
def test_it_computes_with_the_rounded_weights(
    scheme: QuantScheme, change: Callable[[str, Tensor], Tensor], opset: int, saved: Saved
) -> None:
    path = saved(scheme)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    found = target.load(path, UNOPTIMIZED).run({"ids": IDS})["y"]
    assert snr_db(found, computed(change)) > 100
    # Negative control: rounding is no rounding to float32.
    assert snr_db(found, computed(lambda _, weight: weight)) < 80
    # onnxruntime may multiply activations in 8 bits on its own account.
    assert snr_db(target.load(path).run({"ids": IDS})["y"], computed(change)) > 30


def test_a_mixed_file_says_what_it_holds(saved: Saved) -> None:
    path = saved(MIXED)
    held = {use.modules[0]: item for item in target.stored_weights(path, MIXED) for use in item.uses if item.promised}
    assert {path: item.dtype for path, item in held.items()} == {
        "table": "int8",
        "tokens": "float16",
        "spatial": "int4",
        "depthwise": "int4",
        "pointwise": "int8",
        "kept": "float32",
        "vector": "int4",
    }
    for name, item in held.items():
        weight = dict(Every().named_modules())[name].get_parameter("weight")
        assert item.values.shape == tuple(weight.shape)
    spatial, vector = held["spatial"], held["vector"]
    assert spatial.grid is not None and spatial.grid.steps.shape == (64, 2, 1, 1) and spatial.grid.levels == 7
    assert vector.grid is not None and vector.grid.steps.shape == (7, 2)
    assert spatial.parts == {"int4": 64 * 40 * 9 // 2, "float32": 64 * 2 * 4, "int64": 4 * 8}
    described = target.describe(path)
    assert described.stored == {
        dtype: sum(item.parts.get(dtype, 0) for item in target.stored_weights(path, MIXED))
        for dtype in described.stored
    }
    assert sorted(described.float_weights) == ["kept/Conv", "tokens/MatMul"]


@pytest.mark.parametrize("scheme", [INT4, INT8, replace(INT8, granularity="tensor"), replace(INT4, weights="int8")])
def test_what_is_foretold_is_what_is_stored(scheme: QuantScheme, saved: Saved) -> None:
    """Rounding with calibration and the search for the smallest artifact go by it."""
    scheme = replace(scheme, rules=(TABLE,))
    module = Every()
    found = {item.uses[0].modules[0]: item for item in target.stored_weights(saved(scheme), scheme) if item.grid}
    for name, layer in module.named_children():
        storage = target.weight_storage(name, layer, scheme.for_module(name))
        assert storage is not None
        grid = found[name].grid
        assert grid is not None
        assert (grid.steps.shape, grid.levels) == (storage.groups, storage.levels)
        shapes = 8 * found[name].parts.get("int64", 0)
        assert storage.stored_bits(tuple(layer.get_parameter("weight").shape)) == 8 * found[name].nbytes - shapes
    assert target.weight_storage("table", module.table, INT4) is None
    assert target.weight_storage("table", module.table, replace(INT8, weights="float16")) is None


@pytest.mark.parametrize(("weights", "levels"), [("int8", 127), ("int4", 7)])
def test_float16_activations(weights: Any, levels: int, saved: Saved) -> None:
    path = saved(QuantScheme(weights, "float16", rules=(TABLE,), keep_float=("kept",)))

    def change(name: str, weight: Tensor) -> Tensor:
        return weight if name == "kept" else rounded(weight, 127 if name == "table" else levels, weight.shape[1])

    assert snr_db(target.load(path).run({"ids": IDS})["y"], computed(change)) > 40
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert set(target.describe(path).stored) - {"int64"} == {weights, "int8", "float16"}


def test_the_file_is_as_small_as_it_says(saved: Saved) -> None:
    small, whole = saved(MIXED), saved(replace(INT8, weights="float32"))
    assert sum(target.describe(small).stored.values()) < small.stat().st_size < 0.5 * whole.stat().st_size


def test_all_operators_mean_the_same_at_the_newer_opset(
    artifact: Callable[..., Path], subject: Callable[..., Any], tmp_path: Path
) -> None:
    for component in ("text_encoder", "unet", "vae_decoder"):
        model = ir.load(artifact(component, "fp32"))
        convert_version(model, OPSET)
        ir.save(model, tmp_path / "x.onnx")
        inputs = subject(component).held_out
        before, after = (target.load(path).run(inputs) for path in (artifact(component, "fp32"), tmp_path / "x.onnx"))
        assert all(np.array_equal(before[name], after[name]) for name in before)


def test_what_is_stored_as_float_computes_the_same(mixed_copy: Path) -> None:
    before = target.load(mixed_copy, UNOPTIMIZED).run({"ids": IDS})["y"]
    assert target.store_as_float(mixed_copy)
    assert snr_db(target.load(mixed_copy, UNOPTIMIZED).run({"ids": IDS})["y"], before) > 100
    found = target.describe(mixed_copy)
    assert "int4" not in found.stored
    assert "DequantizeLinear" not in found.ops


def test_constants_of_four_bits_are_open_for_change(mixed_copy: Path, saved: Saved) -> None:
    with target.edit(mixed_copy) as constants:
        assert {item.name: item.role for item in constants}["spatial.weight_scale"] == "scale"
    assert onnx.load(mixed_copy) == onnx.load(saved(MIXED))
    with target.edit(mixed_copy) as constants:
        (packed,) = [item for item in constants if item.name == "spatial.weight_int4"]
        assert packed.role == "packed"
        packed.values[:] ^= 0x88  # the sign bits
    before, after = (
        next(item.values for item in target.stored_weights(path, MIXED) if item.name == "spatial.weight_int4")
        for path in (saved(MIXED), mixed_copy)
    )
    assert ((before < 0) != (after < 0)).all()


def test_static_int8_keeps_float_by_rule(
    subject: Callable[..., Any], make: Callable[..., Path], tmp_path: Path
) -> None:
    rule = WeightRule(("embeddings.*", "*.fc1"), "float32")
    scheme = QuantScheme("int8", "int8_static", rules=(rule,))
    found = target.describe(make(subject("text_encoder").with_scheme(scheme, tmp_path), tmp_path / "x.onnx"))
    assert list(found.float_weights) == [
        "embeddings.token_embedding/Gather",
        "encoder.layers.0.mlp.fc1/MatMul",
        "encoder.layers.1.mlp.fc1/MatMul",
    ]


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (INT4, r'table is an embedding, .* add a rule: modules = \["table"\], weights = "int8"'),
        (replace(INT8, granularity="block", block_size=8), "table is an embedding"),
        (replace(INT8, rules=(WeightRule(("table", "nothing.*"), "int8"),)), r"rules pattern 'nothing\.\*' matches no"),
        (replace(INT8, keep_float=("nothing",)), "keep_float pattern 'nothing' matches no convolution"),
        (replace(INT8, rules=(WeightRule(("*",), "palette4", "tensor"),)), "no weights/activations palette4/float32"),
        (QuantScheme("int8", "float16", rules=(WeightRule(("kept",), "float32"),)), "activations float32/float16"),
        (QuantScheme("int8", "int8_static", rules=(TABLE,)), "with int8_static a rule of an onnx recipe can say"),
        (QuantScheme("int4", "int8_static"), "no weights/activations int4/int8_static"),
    ],
)
def test_what_cannot_be_stored_is_refused(scheme: QuantScheme, message: str, lowered: Lowered, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        lowered.quantize(job_of(scheme, tmp_path))


def test_a_weight_that_two_modules_share_is_stored_once(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(64, 64, 3, padding=1)
            self.second = copy.copy(self.first)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.second(self.first(x))
            return out

    torch.manual_seed(0)
    given = {"x": torch.randn(1, 64, 4, 4).numpy()}
    specs = [TensorSpec(name, (1, 64, 4, 4), "float32") for name in ("x", "y")]
    job = LoweringJob("twice", Twice().eval(), (specs[0],), (specs[1],), given, INT4, (given,), tmp_path)
    target.lower(job).quantize(job).save(tmp_path / "x.onnx")
    assert target.describe(tmp_path / "x.onnx").stored["int4"] == 64 * 64 * 9 // 2
    (weight,) = [item for item in target.stored_weights(tmp_path / "x.onnx", INT4) if item.promised]
    assert {use.modules for use in weight.uses} == {("first",), ("second",)}


class Wide(nn.Module):
    """One more input channel than a single sum may have, so that the weight is cut in two."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(911, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wide(x)
        return out


def test_the_parts_of_a_weight_are_stored_small(tmp_path: Path) -> None:
    module = Wide().eval()
    assert split_wide_conv2d(module, OneStep(999, 1.0, -1.0, 1.0, "epsilon")) == 1
    given = {"x": np.zeros((1, 911, 4, 4), np.float32)}
    taken, made = TensorSpec("x", (1, 911, 4, 4), "float32"), TensorSpec("y", (1, 8, 4, 4), "float32")
    job = LoweringJob("wide", module, (taken,), (made,), given, INT8, (given,), tmp_path)
    target.lower(job).quantize(job).save(tmp_path / "x.onnx")
    parts = [item for item in target.stored_weights(tmp_path / "x.onnx", INT8) if item.promised]
    assert [(item.dtype, item.values.shape) for item in parts] == [
        ("int8", (8, 456, 3, 3)),
        ("int8", (8, 455, 3, 3)),
    ]
    assert target.describe(tmp_path / "x.onnx").float_weights == ()


def test_activations_of_16_bits_are_read(tmp_path: Path) -> None:
    """An NPU's graph stores tables that are added as uint16, and also single numbers."""
    table, number = np.arange(65_530, 65_536, dtype=np.uint16), np.array(40_000, np.uint16)
    scale, zero = np.array(0.5, np.float32), np.array(32_768, np.uint16)
    constants: dict[str, Any] = {"table": table, "number": number, "scale": scale, "zero": zero}
    nodes = [
        onnx.helper.make_node("DequantizeLinear", [name, "scale", "zero"], [f"{name}_float"])
        for name in ("table", "number")
    ]
    nodes.append(onnx.helper.make_node("Mul", ["table_float", "number_float"], ["out"]))
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [6])
    held = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "tables", [], [out], held)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]), tmp_path / "x.onnx")
    found = {weight.name: weight for weight in stored_weights(tmp_path / "x.onnx", QuantScheme("int8", "int16_static"))}
    np.testing.assert_array_equal(found["table"].values, (table.astype(np.float32) - 32_768) / 2)
    assert (found["number"].values.shape, float(found["number"].values)) == ((), 3616.0)
    grid = found["table"].grid
    assert grid is not None and grid.levels == 65_535
