"""ControlNets: a copy of the UNet's down path beside the checkpoint, and a UNet that takes what it gives."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from in_process import in_process
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.derived import write_with_component
from md_export.cli import cli
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.planning import plan
from md_export.errors import CheckpointError, ConfigError, UsageError
from md_export.models.adapter import edges
from md_export.models.config import ModelConfig
from md_export.models.controlnet import ConditionEncoder, ControlNetConfig, MDControlNet, skip_shapes
from md_export.models.sampling.sampler import Sampler, one_step
from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.models.walk import Steps, Tensors
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.judge import taking, verify
from md_export.parity.metrics import EXACT_DB, snr_db
from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.artifact import sha256_of_artifact
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets.contract import Description
from md_export.targets.execution import Execution, Part

WEIGHTS = "diffusion_pytorch_model.safetensors"
PAIR = ("a cat", 0)
SIDE = 32
CONFIG = ControlNetConfig(1, (8, 12, 16))
STEPS = SamplerPlan(2, "ddim", 3.0)


def perturbed(net: torch.nn.Module) -> torch.nn.Module:
    """With what begins as nothing as training leaves it."""
    generator = torch.Generator().manual_seed(5)
    for name, value in net.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            with torch.no_grad():
                value.copy_(0.5 * torch.randn(value.shape, generator=generator))
    return net.eval().requires_grad_(False)


def saved(net: torch.nn.Module, folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, other_checkpoint: Path) -> Path:
    """A ControlNet's folder: a copy of the checkpoint's down path."""
    checkpoint = open_checkpoint(other_checkpoint)
    assert isinstance(checkpoint.config.denoiser, MDUNetConfig)
    made = perturbed(MDControlNet(CONFIG, checkpoint.config.denoiser))
    assert (
        not made.load_state_dict(checkpoint.module("unet").state_dict(), strict=False).missing_keys[0].startswith("d")
    )
    return saved(made, tmp_path_factory.mktemp("nets") / "net", dataclasses.asdict(CONFIG))


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory, other_checkpoint: Path, net: Path) -> Path:
    """The small checkpoint with it."""
    folder = tmp_path_factory.mktemp("steered")
    write_with_component(folder, other_checkpoint, net, "controlnet")
    return folder


@pytest.fixture(scope="module")
def case(steered: Path) -> GoldenCase:
    return GoldenCase("case", *PAIR, golden_source(open_checkpoint(steered)).generate(*PAIR))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, steered: Path) -> Path:
    """Its export, judged by one golden case."""
    return exported(steered, tmp_path_factory.mktemp("exports"))


def exported(checkpoint: Path, folder: Path) -> Path:
    (folder / "golden").mkdir()
    write_golden(golden_source(open_checkpoint(checkpoint)), [PAIR], folder / "golden")
    with in_process():
        export(load_recipe(builtin_recipe("onnx", "fp32")), checkpoint, folder / "out", folder / "golden")
    return folder / "out"


@pytest.fixture
def here() -> Iterator[None]:
    with in_process():
        yield


def residuals(values: Arrays) -> list[Array]:
    """What a golden case says that it gave."""
    return [values[key] for key in sorted(values) if key.startswith("controlnet.residual_")]


def condition(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).uniform(size=(1, 1, SIDE, SIDE)) > 0.8).astype(np.float32)


def said(words: list[str]) -> str:
    """What a command prints, or the error that it ends with."""
    result = CliRunner().invoke(cli, words)
    return f"{result.output}{result.exception or ''}"


# --- the modules


@pytest.mark.parametrize("unified", [True, False])
def test_it_begins_as_nothing_and_then_moves_every_map(other_config: ModelConfig, unified: bool) -> None:
    assert isinstance(other_config.denoiser, MDUNetConfig)
    config = dataclasses.replace(other_config.denoiser, unified_inner=unified)
    unet, fresh = MDUNet(config).eval(), MDControlNet(CONFIG, config).eval()
    given = torch.randn(2, 8, 8, 8), torch.tensor([999.0]), torch.randn(2, 77, 48)
    with torch.no_grad():
        plain, nothing = unet(*given), fresh(*given, torch.from_numpy(condition()))
        assert torch.equal(unet(*given, *nothing), plain)
        added = perturbed(fresh)(*given, torch.from_numpy(condition()))
        assert [(1, *one.shape[1:]) for one in added] == [*skip_shapes(config, (1, 8, 8, 8))]
        for place in range(len(added)):
            alone = [one if place == at else torch.zeros_like(one) for at, one in enumerate(added)]
            assert not torch.allclose(unet(*given, *alone), plain), place


def test_the_conditions_encoder_is_that_of_diffusers() -> None:
    library = pytest.importorskip("diffusers.models.controlnets.controlnet", reason="needs the extra diffusers")
    theirs = library.ControlNetConditioningEmbedding(24, 1, (8, 12, 16)).eval()
    torch.nn.init.normal_(theirs.conv_out.weight)
    ours = ConditionEncoder(1, (8, 12, 16), 24).eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        picture = torch.rand(1, 1, SIDE, SIDE)
        torch.testing.assert_close(ours(picture), theirs(picture), rtol=0, atol=1e-6)


REWRITES = [
    ("linear_to_conv2d", "group_norm_to_instance_norm", "tabulate_timestep"),
    ("tokens_to_maps", "vector_linear_to_conv2d", "staged_group_norm", "fold_norm_affine", "fold_attention_scale"),
    ("linear_to_conv2d", "fold_timestep", "split_attention_heads"),
]


@pytest.mark.parametrize("names", REWRITES)
def test_the_unets_rewrites_are_its_own(steered: Path, case: GoldenCase, names: tuple[str, ...]) -> None:
    checkpoint = open_checkpoint(steered)
    module = checkpoint.module("controlnet")
    records = apply_rewrites(names, "controlnet", module, one_step(checkpoint.config), Consent())
    assert all(record.fired for record in records)
    given = {name: torch.from_numpy(value) for name, value in case.inputs("controlnet").items()}
    if "fold_timestep" in names:
        given.pop("timestep")
    with torch.no_grad():
        for value, wanted in zip(module(*given.values()), residuals(case.values), strict=True):
            assert snr_db(value.numpy(), wanted) > min(EXACT_DB, 100)


# --- the checkpoint


def test_a_checkpoint_has_it(steered: Path, other_checkpoint: Path) -> None:
    plain, checkpoint = open_checkpoint(other_checkpoint), open_checkpoint(steered)
    assert checkpoint.components == ("text_encoder", "controlnet", "unet", "vae_decoder")
    assert checkpoint.config.condition_shape == (1, 1, SIDE, SIDE)
    assert plain.config.condition_shape is None
    checkpoint.check()
    assert checkpoint.source_sha256("unet") == plain.source_sha256("unet")
    with pytest.raises(UsageError, match="has no ControlNet"):
        plain.module("controlnet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioning_embedding_out_channels": [8, 12]}, "2 times smaller, but the VAE makes pictures 4 times"),
        ({"conditioning_embedding_out_channels": [8] * 7}, "7 entries"),
        ({"conditioning_channels": 2}, "1 or 3 channels"),
        ({"global_pool_conditions": True}, "only global_pool_conditions=False"),
        ({"in_channels": 4}, "unknown field in_channels"),
    ],
)
def test_one_for_another_model_is_refused(steered: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_with_component(tmp_path, other_of(steered), steered / "controlnet", "controlnet")
    file = tmp_path / "controlnet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(tmp_path)


def other_of(steered: Path) -> Path:
    """The folder that it adds to."""
    parent: str = json.loads((steered / "sibling.json").read_text())["parent"]
    return (steered / parent).resolve()


def test_weights_that_do_not_fit_are_named(steered: Path, tmp_path: Path) -> None:
    write_with_component(tmp_path, other_of(steered), steered / "controlnet", "controlnet")
    tensors = load_file(tmp_path / "controlnet" / WEIGHTS)
    tensors["controlnet_mid_block.weight"] = tensors["controlnet_mid_block.weight"][:8]
    save_file(tensors, tmp_path / "controlnet" / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"controlnet: the weights do not fit(?s:.*)controlnet_mid_block\.weight"):
        open_checkpoint(tmp_path).check()


def test_not_both(steered: Path, nano: Path, tmp_path: Path) -> None:
    write_with_component(tmp_path, other_of(steered), steered / "controlnet", "controlnet")
    shutil.copytree(nano / "adapters" / "edges" / "t2i_adapter", tmp_path / "t2i_adapter")
    with pytest.raises(ConfigError, match="both exist"):
        open_checkpoint(tmp_path)


def test_adapt_writes_a_checkpoint(other_checkpoint: Path, net: Path, tmp_path: Path) -> None:
    words = ["adapt", str(other_checkpoint), "--controlnet"]
    assert "which takes a condition picture in one channel" in said([*words, str(net), "-o", str(tmp_path / "out")])
    assert open_checkpoint(tmp_path / "out").module("controlnet") is not None
    assert "holds no ControlNet" in said([*words, str(other_checkpoint), "-o", str(tmp_path / "none")])
    assert "--controlnet FOLDER" in said([*words, str(net), "--adapter", str(net), "-o", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_a_build_knows_one_unet_from_the_other(other_checkpoint: Path, steered: Path) -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32"))
    keys, others = (
        {step.label: step.key for step in plan([recipe], folder, None).steps} for folder in (other_checkpoint, steered)
    )
    assert "onnx-fp32: controlnet" in others
    assert others["onnx-fp32: unet"] != keys["onnx-fp32: unet"]


# --- sampling


def test_golden_cases_hold_what_it_adds(case: GoldenCase, other_checkpoint: Path) -> None:
    plain = golden_source(open_checkpoint(other_checkpoint)).generate(*PAIR)
    given = case.inputs("controlnet")
    assert np.array_equal(given["condition"], edges(plain["made.picture"]))
    assert list(given) == ["sample", "timestep", "encoder_hidden_states", "condition"]
    assert len(residuals(case.values)) == 8
    assert np.array_equal(case.inputs("unet")["residual_7"], case.output("controlnet", "residual_7"))
    assert not np.array_equal(case.values["unet.out_sample"], plain["unet.out_sample"])


def test_it_adds_something_else_in_each_of_many_steps(steered: Path) -> None:
    values = golden_source(open_checkpoint(steered), sampler=STEPS).generate(*PAIR)
    first, last = GoldenCase("case", *PAIR, values).calls("unet")
    controls = GoldenCase("case", *PAIR, values).calls("controlnet")
    module = open_checkpoint(steered).module("controlnet")
    for call, control in zip((first, last), controls, strict=True):
        given = [torch.from_numpy(value) for value in control.inputs("controlnet").values()]
        assert [len(value) for value in given] == [2, 1, 2, 1]
        with torch.no_grad():
            wanted = module(*given)[3].numpy()
        assert snr_db(call.inputs("unet")["residual_3"], wanted) > 100
    assert not np.allclose(first.output("controlnet", "residual_3"), last.output("controlnet", "residual_3"))


def test_whoever_takes_the_steps_asks_it_each_time(steered: Path) -> None:
    source = golden_source(open_checkpoint(steered), sampler=STEPS)
    values, pipeline = source.generate(*PAIR), source.pipeline
    asked: list[str] = []

    def execute(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        asked.append(path.name)
        return Execution(
            [dict(made) for made in pipeline.backend.run(path.name, batches)], Description({}, {}), hazards=(target,)
        )

    assert pipeline.steps is not None
    begun: Tensors = {key: value for key, value in values.items() if key.startswith(("given.", "text_encoder."))}
    rows = tuple(row for row in pipeline.components if row.called == "per step")
    specs = {row.name: tuple(TensorSpec(name, (), "") for name in row.read(values, 0)) for row in rows}
    parts = [Part(row.name, Path(row.name), specs[row.name]) for row in rows]
    hazards = taking(execute)("onnx", parts, Steps(pipeline.family, rows, Sampler(pipeline.steps)), [begun])
    assert asked == ["controlnet", "unet"] * 2
    assert hazards == ("onnx",)
    assert np.allclose(begun["sampler.latent"], values["sampler.latent"], rtol=1e-5, atol=1e-5)


# --- artifacts


@pytest.mark.usefixtures("here")
def test_artifacts_make_what_torch_makes(made: Path, steered: Path) -> None:
    manifest = read_manifest(made)
    assert [entry.component for entry in manifest.artifacts] == ["text_encoder", "controlnet", "unet", "vae_decoder"]
    assert [spec.name for spec in manifest.entry_for("unet").inputs][3:] == [f"residual_{at}" for at in range(8)]
    for given in (None, [condition()]):
        (picture,) = pictures_of_artifacts(made, [PAIR], conditions=given)
        (wanted,) = pictures_of_checkpoint(steered, [PAIR], conditions=given)
        assert snr_db(picture, wanted) > 95
    first, second = (pictures_of_artifacts(made, [PAIR], conditions=[condition(seed)])[0] for seed in (0, 1))
    assert snr_db(first, second) < 85


def swapped(made: Path, folder: Path, component: str, names: tuple[str, str]) -> Path:
    """A copy of an export of which one artifact takes or gives two residuals in each other's place."""
    copy = Path(shutil.copytree(made, folder / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (entry,) = (item for item in manifest["artifacts"] if item["component"] == component)
    model = onnx.load(copy / entry["file"])
    other = {names[0]: names[1], names[1]: names[0]}
    for value in (*model.graph.input, *model.graph.output):
        assert value.name not in other or shape_of(value) == shape_of(made_of(model, other[value.name]))
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [other.get(value, value) for value in values]
    onnx.save(model, copy / entry["file"])
    entry["sha256"] = sha256_of_artifact(copy / entry["file"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def shape_of(value: Any) -> list[int]:
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def made_of(model: Any, name: str) -> Any:
    (found,) = (value for value in (*model.graph.input, *model.graph.output) if value.name == name)
    return found


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("component", ["controlnet", "unet"])
def test_two_residuals_of_one_shape_in_each_others_place_are_rejected(
    made: Path, tmp_path: Path, component: str
) -> None:
    assert verify(made).passed
    failures = verify(swapped(made, tmp_path, component, ("residual_0", "residual_1"))).failures
    assert any(line.startswith(f"{component}: snr") for line in failures)
    assert any(line.startswith("picture: ") for line in failures)
    assert not any(line.startswith(("text_encoder: ", "vae_decoder: ")) for line in failures)


@pytest.mark.usefixtures("here")
def test_generate_takes_a_condition(made: Path, other_checkpoint: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "condition.png", tmp_path / "out.png"
    Image.fromarray((condition()[0, 0] * 255).astype(np.uint8)).save(file)
    words = ["generate", "a cat", "--condition", str(file), "-o", str(out)]
    assert "32×32" in said([*words, "--artifacts", str(made)])
    out.unlink()
    assert "--controlnet FOLDER" in said([*words, "--checkpoint", str(other_checkpoint)])
    assert not out.exists()
