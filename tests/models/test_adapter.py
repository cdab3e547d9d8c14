"""Adapters: a condition picture's encoder beside the checkpoint, and a UNet that takes what it gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.derived import write_with_component
from md_export.cli import cli
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.planning import plan
from md_export.errors import CheckpointError, ConfigError, GoldenError, UsageError
from md_export.models.adapter import AdapterConfig, T2IAdapter, Unshuffle, edges
from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.parity.golden.case import GoldenCase, values_from_bytes
from md_export.parity.golden.folder import read_golden, write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.judge import verify
from md_export.spec.manifest import read_manifest
from md_export.spec.names import OPTIONAL_NAMES, ORDER
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import joined
from support import Exported, made_once
from training.adapter import held_out
from training.moved import Moved, shares
from training.scenes import caption

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROMPT = "a large red circle on the left, white background"


@pytest.fixture(scope="session")
def steered(nano: Path) -> Path:
    """The nano checkpoint with the adapter that ships."""
    return nano / "adapters" / "edges"


@pytest.fixture(scope="session")
def cases(steered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two golden cases of it."""
    folder = tmp_path_factory.mktemp("cases")
    write_golden(golden_source(open_checkpoint(steered)), [(PROMPT, 0), (PROMPT, 1)], folder)
    return folder


@pytest.fixture(scope="session")
def moved() -> list[Moved]:
    """Some held-out objects that stand elsewhere than their captions say."""
    return held_out()[::16]


@pytest.fixture
def copied(steered: Path, nano: Path, tmp_path: Path) -> Path:
    """A copy of the adapter's folder that a test may damage, made a checkpoint."""
    write_with_component(tmp_path, nano, steered / "t2i_adapter", "t2i_adapter")
    return tmp_path


def said(words: list[str]) -> str:
    """What a command prints, or the error that it ends with."""
    result = CliRunner().invoke(cli, words)
    return f"{result.output}{result.exception or ''}"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "t2i_adapter" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- the modules


@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_is_that_of_diffusers(channels: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    sizes = {"in_channels": channels, "num_res_blocks": 2, "downscale_factor": 8}
    theirs = diffusers.T2IAdapter(adapter_type="full_adapter", channels=[16, 16, 24], **sizes).eval()
    ours = T2IAdapter(AdapterConfig(channels=(16, 16, 24), **sizes)).eval()
    ours.load_state_dict(theirs.state_dict())
    picture = torch.rand(2, channels, 64, 32)
    with torch.no_grad():
        for made, wanted in zip(ours(picture), theirs(picture), strict=True):
            torch.testing.assert_close(made, wanted, rtol=0, atol=1e-6)


def test_unshuffling_is_torchs() -> None:
    picture = torch.rand(2, 3, 24, 16)
    assert torch.equal(Unshuffle(8)(picture), nn.functional.pixel_unshuffle(picture, 8))


def test_residuals_are_added_level_by_level(other_config: ModelConfig) -> None:
    assert isinstance(other_config.denoiser, MDUNetConfig)
    unet = MDUNet(other_config.denoiser).eval()
    given = torch.randn(1, 8, 8, 8), torch.tensor([999.0]), torch.randn(1, 77, 48)
    none = [torch.zeros(1, width, 8 >> level, 8 >> level) for level, width in enumerate((16, 48, 64))]
    with torch.no_grad():
        plain = unet(*given)
        assert torch.equal(unet(*given, *none), plain)
        for level in range(3):
            added = [value + 1.0 if place == level else value for place, value in enumerate(none)]
            assert not torch.allclose(unet(*given, *added), plain)


def test_edges() -> None:
    picture = np.zeros((8, 8, 3), np.float32)
    assert not edges(picture).any()
    picture[:, 4:, 2] = 1.0
    found = edges(picture, 3)
    assert (found.shape, str(found.dtype)) == ((1, 3, 8, 8), "float32")
    assert [int(column) for column in found[0, 0].astype(np.float32).mean(0)] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert not edges(picture * 0.1).any()


# --- the checkpoint


def test_optional_components_are_the_recipes() -> None:
    assert {component.name for component in MOBILE_DIFFUSION.components if component.optional} < set(OPTIONAL_NAMES)
    assert set(OPTIONAL_NAMES.values()) <= set(COMPONENTS)
    assert tuple(MOBILE_DIFFUSION.rows) == tuple(name for name in ORDER if name in MOBILE_DIFFUSION.rows)


def test_a_checkpoint_has_an_adapter_or_not(nano: Path, steered: Path) -> None:
    plain, with_adapter = open_checkpoint(nano), open_checkpoint(steered)
    assert plain.components == ("text_encoder", "unet", "vae_decoder")
    assert with_adapter.components == ("text_encoder", "t2i_adapter", "unet", "vae_decoder")
    with_adapter.check()
    assert with_adapter.source_sha256("unet") == plain.source_sha256("unet")
    assert with_adapter.sha256() != plain.sha256()
    with pytest.raises(UsageError, match="has no adapter"):
        plain.module("t2i_adapter")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": [48, 80]}, r"channels=\(48, 80\).*\(48, 80, 96\)"),
        ({"downscale_factor": 16}, "downscale_factor=16.*8"),
        ({"adapter_type": "light_adapter"}, "only adapter_type='full_adapter'"),
        ({"in_channels": 2}, "1 or 3 channels"),
        ({"channels": "wide"}, "must be a list"),
        ({"num_res_blocks": 10**9}, "absurd"),
        ({"strength": 2}, "unknown field strength"),
    ],
)
def test_an_adapter_for_another_model_is_refused(copied: Path, changes: dict[str, object], message: str) -> None:
    edit_config(copied, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        open_checkpoint(copied)


def test_weights_of_another_shape_are_named(copied: Path) -> None:
    path = copied / "t2i_adapter" / WEIGHTS
    tensors = load_file(path)
    tensors.pop("adapter.conv_in.bias")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"adapter\.conv_in\.bias"):
        open_checkpoint(copied).check()
    path.unlink()
    with pytest.raises(CheckpointError, match="t2i_adapter holds no weights"):
        open_checkpoint(copied)


def test_adapt_writes_a_checkpoint(nano: Path, steered: Path, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        return said(["adapt", *words])

    adapter = str(steered / "t2i_adapter")
    assert "one channel" in run(str(nano), "--adapter", adapter, "-o", str(tmp_path / "edges"))
    assert open_checkpoint(tmp_path / "edges").module("t2i_adapter") is not None
    assert "sibling.json" in run(str(tmp_path / "edges"), "--adapter", adapter, "-o", str(tmp_path / "twice"))
    assert "holds no adapter" in run(str(nano), "--adapter", str(nano), "-o", str(tmp_path / "none"))
    assert "--adapter FOLDER" in run(str(nano), "-o", str(tmp_path / "none"))
    lora = str(nano / "loras" / "outline.safetensors")
    assert "in unet" in run(str(tmp_path / "edges"), "--lora", lora, "-o", str(tmp_path / "both"))
    assert "t2i_adapter" in open_checkpoint(tmp_path / "both").components
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "twice").exists()


# --- golden cases, sampling


def test_golden_cases_hold_the_condition_and_what_it_adds(cases: Path, nano: Path, steered: Path) -> None:
    case = read_golden(cases).cases[0]
    plain = golden_source(open_checkpoint(nano)).generate(PROMPT, 0)
    (condition,) = case.inputs("t2i_adapter").values()
    assert np.array_equal(condition, edges(plain["made.picture"]))
    with torch.no_grad():
        made = open_checkpoint(steered).module("t2i_adapter")(torch.from_numpy(condition))
    for level, value in enumerate(made):
        name = f"residual_{level}"
        assert np.array_equal(case.inputs("unet")[name], case.output("t2i_adapter", name))
        torch.testing.assert_close(torch.from_numpy(case.output("t2i_adapter", name)), value, rtol=1e-5, atol=1e-5)
    assert not np.array_equal(case.values["unet.out_sample"], plain["unet.out_sample"])
    assert values_from_bytes((cases / "case-000.safetensors").read_bytes(), cases)["t2i_adapter.residual_2"].shape == (
        1,
        96,
        2,
        2,
    )


def test_the_golden_cases_that_ship_are_of_it(steered: Path) -> None:
    index = read_golden(steered / "golden").index
    assert index.checkpoint_sha256 == open_checkpoint(steered).sha256()
    assert read_golden(steered / "golden").cases[0].values["given.condition"].size


def test_a_case_without_a_condition_says_so(nano: Path) -> None:
    case = read_golden(nano / "golden").cases[0]
    with pytest.raises(GoldenError, match="has no values of t2i_adapter "):
        case.inputs("t2i_adapter")


def test_many_steps_take_it_for_both_texts(steered: Path) -> None:
    values = golden_source(open_checkpoint(steered), sampler=SamplerPlan(2, "ddim", 3.0)).generate(PROMPT, 0)
    call = GoldenCase("case", PROMPT, 0, values).calls("unet")[0]
    residual = call.inputs("unet")["residual_0"]
    assert residual.shape == (2, 48, 8, 8)
    assert np.array_equal(residual[0], residual[1])


def test_held_out_objects_follow_their_edges(steered: Path, moved: list[Moved]) -> None:
    requests = [(caption(one.scene), seed) for seed, one in enumerate(moved)]
    conditions = [edges(one.draw()) for one in moved]
    with_it = shares(np.stack(pictures_of_checkpoint(steered, requests, conditions=conditions)), moved)
    without = shares(np.stack(pictures_of_checkpoint(steered, requests)), moved)
    assert with_it["follows"] >= 0.7
    assert with_it["colour"] >= 0.9
    assert without["follows"] <= 0.1


def test_without_a_condition_it_adds_nothing(nano: Path, steered: Path) -> None:
    (plain,) = pictures_of_checkpoint(nano, [(PROMPT, 3)])
    assert np.array_equal(pictures_of_checkpoint(steered, [(PROMPT, 3)])[0], plain)


def test_a_condition_that_cannot_be_taken(nano: Path, steered: Path, tmp_path: Path) -> None:
    def run(checkpoint: Path, mode: str, side: int) -> str:
        Image.new(mode, (side, side)).save(tmp_path / "condition.png")
        words = ["--checkpoint", str(checkpoint), "--condition", str(tmp_path / "condition.png")]
        return said(["generate", PROMPT, *words, "-o", str(tmp_path / "out.png")])

    assert "has no input for a condition picture" in run(nano, "L", 64)
    assert "scale or crop" in run(steered, "L", 32)
    assert "a gray picture" in run(steered, "RGB", 64)
    assert not (tmp_path / "out.png").exists()
    assert "64×64" in run(steered, "L", 64)


def test_a_build_knows_one_unet_from_the_other(nano: Path, steered: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32"))
    plain, with_adapter = (plan([recipe], folder, None) for folder in (nano, steered))
    keys = {step.label: step.key for step in plain.steps}
    others = {step.label: step.key for step in with_adapter.steps}
    assert "onnx-fp32: t2i_adapter" in others
    assert others["onnx-fp32: unet"] != keys["onnx-fp32: unet"]


# --- artifacts


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, steered: Path, cases: Path) -> Exported:
    def make(target: str, precision: str, out: Path) -> None:
        export(load_recipe(builtin_recipe(target, precision)), steered, out, cases)

    return made_once(tmp_path_factory, "steered", make)


@pytest.mark.slow
def test_artifacts_obey_the_edges(made: Exported, moved: list[Moved]) -> None:
    out = made("onnx", "int8")
    manifest = read_manifest(out)
    assert [entry.component for entry in manifest.artifacts] == ["text_encoder", "t2i_adapter", "unet", "vae_decoder"]
    assert [spec.name for spec in manifest.entry_for("unet").inputs][3:] == ["residual_0", "residual_1", "residual_2"]
    assert manifest.recipe.schemes["t2i_adapter"].keep_float == ()
    chosen = moved[::2]
    requests = [(caption(one.scene), seed) for seed, one in enumerate(chosen)]
    conditions = [edges(one.draw()) for one in chosen]
    found = shares(np.stack(pictures_of_artifacts(out, requests, conditions=conditions)), chosen)
    assert found["follows"] >= 0.6


def _rewritten(out: Path, name: str, folder: Path, change: dict[str, float]) -> Path:
    """A copy of an export in which some constants of one artifact are multiplied, and the manifest agrees with it."""
    copy = Path(shutil.copytree(out, folder / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = (item for item in manifest["artifacts"] if item["component"] == name)
    model = onnx.load(copy / entry["file"])
    for constant in model.graph.initializer:
        for part, factor in change.items():
            if part in constant.name:
                values = onnx.numpy_helper.to_array(constant)
                constant.CopyFrom(onnx.numpy_helper.from_array((values * factor).astype(values.dtype), constant.name))
    onnx.save(model, copy / entry["file"])
    from md_export.spec.artifact import sha256_of_artifact

    entry["sha256"] = sha256_of_artifact(copy / entry["file"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.slow
def test_verify_names_an_adapter_that_adds_nothing(made: Exported, tmp_path: Path) -> None:
    out = made("onnx", "int8")
    assert verify(out).passed
    broken = _rewritten(out, "t2i_adapter", tmp_path, {"adapter.body.2": 0.0})
    failures = verify(broken).failures
    assert any(line.startswith("t2i_adapter: ") for line in failures)
    assert not any(line.startswith(("unet: ", "text_encoder: ")) for line in failures)


def test_the_case_is_judged_output_by_output(cases: Path) -> None:
    case = read_golden(cases).cases[0]
    residuals = {f"residual_{level}": case.output("t2i_adapter", f"residual_{level}") for level in range(3)}
    assert joined(residuals).shape == (sum(value.size for value in residuals.values()),)
    with pytest.raises(GoldenError, match=r"no values of t2i_adapter \(no t2i_adapter\.residual_3\)"):
        case.output("t2i_adapter", "residual_3")
    with pytest.raises(KeyError):
        case.output("t2i_adapter", "residual_x")
