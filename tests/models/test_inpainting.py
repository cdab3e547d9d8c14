"""A part of a picture painted anew: the VAE encoder as a component, UNets made for in-painting, and blended latents."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import save_file

from in_process import in_process
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.checkpoint.derived import write_with_component
from md_export.cli import cli
from md_export.engine.dependencies import makers_of_inputs
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import CheckpointError, ConfigError, GoldenError, RecipeError, UsageError
from md_export.models.adapter import AdapterConfig, T2IAdapter
from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.sampling.pictures import Given, Start, blend, cells_of, hide, middle, read_given
from md_export.models.unet import MDUNetConfig
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import GoldenSet, read_golden, write_golden
from md_export.parity.golden.prepare import golden_source, present_golden
from md_export.parity.judge import verify
from md_export.parity.metrics import snr_db
from md_export.parity.verdict import Verdict
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe, recipe_to_dict
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import builtin_recipe
from support import Exported

Float32 = NDArray[np.float32]
# The small checkpoint's pictures have 32 pixels a side and its latents 8 cells of 8 channels.
SIDE, CHANNELS = 32, 8
PAIR = ("a cat", 0)


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory, other_config: ModelConfig) -> Path:
    """A random checkpoint whose UNet in-paints."""
    out = tmp_path_factory.mktemp("checkpoints") / "painter"
    write_checkpoint(out, widened(other_config, 2 * CHANNELS + 1), seed=3)
    return out


@pytest.fixture(scope="module")
def edged(painter: Path, other_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a random adapter."""
    folder, adapter = tmp_path_factory.mktemp("edged"), tmp_path_factory.mktemp("adapter")
    assert isinstance(other_config.denoiser, MDUNetConfig)
    config = AdapterConfig(1, other_config.denoiser.block_out_channels, num_res_blocks=1, downscale_factor=4)
    torch.manual_seed(11)
    save_file(T2IAdapter(config).state_dict(), adapter / "diffusion_pytorch_model.safetensors")
    (adapter / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    write_with_component(folder, painter, adapter, "t2i_adapter")
    return folder


@pytest.fixture(scope="module")
def painted(edged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export, judged by one golden case."""
    out = tmp_path_factory.mktemp("exports") / "painted"
    with in_process():
        export(recipe("onnx-fp32"), edged, out, golden_of(edged, out.with_name("golden")))
    return out


@pytest.fixture
def here() -> Iterator[None]:
    with in_process():
        yield


def widened(config: ModelConfig, channels: int) -> ModelConfig:
    return dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, in_channels=channels))


def recipe(name: str) -> Recipe:
    return load_recipe(builtin_recipe(*name.split("-")))


def golden_of(checkpoint: Path, folder: Path, encodes: bool = False, sampler: SamplerPlan | None = None) -> Path:
    folder.mkdir()
    write_golden(golden_source(open_checkpoint(checkpoint), sampler=sampler, encodes=encodes), [PAIR], folder)
    return folder


def only_case(golden: GoldenSet) -> GoldenCase:
    (case,) = golden.cases
    return case


def given(mask: Float32, seed: int = 0) -> Given:
    image = np.random.default_rng(seed).uniform(-1, 1, (1, 3, SIDE, SIDE)).astype(np.float32)
    return Given(image, mask)


def left_half() -> Float32:
    mask = np.zeros((1, 1, SIDE, SIDE), np.float32)
    mask[..., : SIDE // 2] = 1
    return mask


def test_a_cell_is_painted_where_any_of_its_pixels_is() -> None:
    mask = np.zeros((1, 1, 16, 24), np.float32)
    mask[..., 7, 8] = 1
    assert np.argwhere(cells_of(mask, 8)).tolist() == [[0, 0, 0, 1]]
    assert cells_of(mask, 8).shape == (1, 1, 2, 3)


def test_what_is_hidden_is_gray_and_the_rest_as_it_was() -> None:
    one = given(left_half())
    shown = hide(one.image, one.mask)
    assert not shown[..., : SIDE // 2].any()
    assert np.array_equal(shown[..., SIDE // 2 :], one.image[..., SIDE // 2 :])


def test_blending_takes_each_cell_from_one_side() -> None:
    made, kept = (np.full((1, 2, 4, 4), value, np.float32) for value in (3, 5))
    cells = middle(4, 4)
    mixed = blend(made, cells, kept)
    assert np.array_equal(mixed == 3, np.repeat(cells == 1, 2, axis=1))
    assert np.array_equal(blend(made, np.ones_like(cells), kept), made)
    assert np.array_equal(blend(made, np.zeros_like(cells), kept), kept)


def test_an_unet_takes_the_latent_or_the_latent_twice_and_a_mask(other_config: ModelConfig) -> None:
    other_config.check()
    assert not other_config.inpaints
    painting = widened(other_config, 17)
    painting.check()
    assert painting.inpaints
    assert painting.latent_shape == other_config.latent_shape
    assert COMPONENTS["unet"].input_specs(painting)[0].shape == (1, 17, 8, 8)
    assert widened(other_config, 16).edits
    said = "must be equal, or 16 for editing, or 17 for in-painting"
    for channels in (9, 18):
        with pytest.raises(ConfigError, match=f"in_channels={channels}.*{said}"):
            widened(other_config, channels).check()


def test_the_unet_must_give_a_latent(other_config: ModelConfig) -> None:
    unet = dataclasses.replace(other_config.denoiser, out_channels=4)
    with pytest.raises(ConfigError, match=r"out_channels=4.*latent_channels=8"):
        dataclasses.replace(other_config, denoiser=unet).check()


def test_golden_case_of_a_painter_says_what_the_unet_took(painter: Path, tmp_path: Path) -> None:
    case = only_case(read_golden(golden_of(painter, tmp_path / "golden")))
    values, config = case.values, open_checkpoint(painter).config
    image, latent = values["given.image"], values["vae_encoder.latent_mean"]
    sample = case.inputs("unet")["sample"]
    assert np.array_equal(sample[:, :CHANNELS], values["given.noise"])
    mask = middle(SIDE, SIDE)
    scale = config.vae.scaling_factor
    assert np.array_equal(sample[:, CHANNELS : CHANNELS + 1], cells_of(mask, 4))
    assert np.array_equal(sample[:, CHANNELS + 1 :], latent.astype(np.float32) * np.float32(scale))
    assert np.array_equal(hide(image, mask), image)
    assert image.any()
    assert np.array_equal(case.inputs("vae_encoder")["image"], image)
    assert np.array_equal(case.output("vae_encoder", "latent_mean"), latent)


def test_many_steps_show_the_rest_in_each(painter: Path, tmp_path: Path) -> None:
    golden = read_golden(golden_of(painter, tmp_path / "golden", sampler=SamplerPlan(2, "ddim", 3.0)))
    case = only_case(golden)
    calls = case.calls("unet")
    assert len(calls) == 2
    first, last = (call.inputs("unet")["sample"] for call in calls)
    assert first.shape == last.shape == (2, 17, 8, 8)
    assert np.array_equal(first[:, CHANNELS:], last[:, CHANNELS:])
    assert not np.array_equal(first[:, :CHANNELS], last[:, :CHANNELS])
    assert len(case.calls("vae_encoder")) == 1


def test_golden_case_of_the_encoder_is_of_the_picture(other_checkpoint: Path, tmp_path: Path) -> None:
    values = only_case(read_golden(golden_of(other_checkpoint, tmp_path / "golden", encodes=True))).values
    assert np.array_equal(values["given.image"], np.clip(values["vae_decoder.image"], -1, 1))
    assert "given.mask" not in values


def test_cases_without_the_encoder_open_and_say_what_they_lack(other_checkpoint: Path, tmp_path: Path) -> None:
    folder = golden_of(other_checkpoint, tmp_path / "golden")
    case = only_case(read_golden(folder))
    assert not {"given.image", "vae_encoder.latent_mean", "given.mask", "sampler.shown"} & set(case.values)
    for ask in (lambda: case.inputs("vae_encoder"), lambda: case.output("vae_encoder", "latent_mean")):
        with pytest.raises(GoldenError, match=r"no values of vae_encoder .*; .* md-export golden CHECKPOINT --encoder"):
            ask()
    checkpoint = open_checkpoint(other_checkpoint)
    assert present_golden(checkpoint, folder) == folder
    with pytest.raises(GoldenError, match=r"without what the VAE encoder makes .*--encoder -o DIR"):
        present_golden(checkpoint, folder, encodes=True)


def test_a_recipe_takes_the_encoder_as_it_takes_the_decoder() -> None:
    plain = recipe("onnx-int8")
    wide = plain.widened(("vae_encoder",))
    assert wide.components == ("text_encoder", "vae_encoder", "unet", "vae_decoder")
    assert wide.schemes["vae_encoder"].weights == plain.schemes["vae_decoder"].weights
    assert wide.schemes["vae_encoder"].keep_float == ("encoder.conv_out",)
    assert wide.tolerances["vae_encoder"] == plain.tolerances["vae_decoder"]
    assert wide.widened(("vae_encoder",)) == wide
    assert plain.widened(plain.components) == plain
    assert plain.widened(("vae_encoder",)).narrowed(("vae_encoder",)).components == ("vae_encoder",)


def test_a_recipe_may_say_more_of_the_encoder(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    text = builtin_recipe("onnx", "fp32").read_text()
    file.write_text(text + '\n[tolerance.vae_encoder]\nsnr_db = 42.0\n[scheme.vae_encoder]\nweights = "float16"\n')
    plain = load_recipe(file)
    wide = plain.widened(("vae_encoder",))
    assert wide.tolerances["vae_encoder"].snr_db == 42
    assert wide.schemes["vae_encoder"].weights == "float16"
    assert wide.schemes["vae_decoder"].weights == "float32"
    # What is said of a component that is not there is not written.
    assert recipe_to_dict(plain) == recipe_to_dict(load_recipe(builtin_recipe("onnx", "fp32")))
    file.write_text(text + "\n[tolerance.vae_encoder]\nsnr = 42.0\n")
    with pytest.raises(RecipeError, match=r"\[tolerance.vae_encoder\] unknown field 'snr'"):
        load_recipe(file)


def test_swift_has_no_place_for_the_encoder() -> None:
    with pytest.raises(RecipeError, match="layout swift has no place for a VAE encoder"):
        dataclasses.replace(recipe("coreml-fp16"), layout="swift").widened(("vae_encoder",))


def test_only_whole_recipes_are_completed() -> None:
    needed = ("text_encoder", "vae_encoder", "unet", "vae_decoder")
    assert recipe("onnx-fp32").completed(needed).components == needed
    assert recipe("onnx-fp32").narrowed(("unet",)).completed(needed).components == ("unet",)
    with pytest.raises(RecipeError, match=r"\[scheme.vae_encoder\] and \[tolerance.vae_encoder\] are missing"):
        dataclasses.replace(recipe("onnx-fp32").narrowed(("unet",)), schemes={}, components=()).widened(needed)


def test_a_checkpoint_without_the_encoder_says_so(nano: Path, tmp_path: Path) -> None:
    alone = recipe("onnx-fp32").widened(("vae_encoder",)).narrowed(("vae_encoder",))
    with pytest.raises(CheckpointError, match=r"(?s)vae_encoder: the weights do not fit.*encoder\.conv_in\.weight"):
        export(alone, nano, tmp_path / "out")


@pytest.mark.usefixtures("here")
def test_export_of_a_painter_has_its_encoder(painted: Path) -> None:
    manifest = read_manifest(painted)
    components = ["text_encoder", "vae_encoder", "t2i_adapter", "unet", "vae_decoder"]
    assert [entry.component for entry in manifest.artifacts] == components
    assert manifest.entry_for("unet").inputs[0].shape == (1, 17, 8, 8)
    result = verify(painted)
    assert result.passed
    assert result.picture is not None


@pytest.mark.usefixtures("here")
def test_a_wrong_encoder_is_named_and_seen_in_the_picture(painted: Path, tmp_path: Path) -> None:
    out = damaged(painted, tmp_path / "out")
    result = verify(out)
    assert not result.passed
    assert {line.split(":")[0] for line in result.failures} >= {"vae_encoder", "picture"}
    assert not any(line.startswith(("unet", "vae_decoder", "text_encoder")) for line in result.failures)
    assert picture_db(result) < picture_db(verify(painted)) - 20


def damaged(painted: Path, out: Path) -> Path:
    """A copy whose encoder gives half of each latent."""
    shutil.copytree(painted, out)
    model = onnx.load(out / "vae_encoder.onnx")
    last = [weight for weight in model.graph.initializer if "quant_conv" in weight.name and "weight" in weight.name]
    assert last
    for weight in last:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.5), weight.name))
    onnx.save(model, out / "vae_encoder.onnx")
    return out


def picture_db(result: Verdict) -> float:
    assert result.picture is not None
    assert result.picture.psnr_db is not None
    return result.picture.psnr_db


@pytest.mark.usefixtures("here")
def test_artifacts_paint_what_torch_paints(painted: Path, edged: Path, painter: Path) -> None:
    for one in (None, [given(left_half())]):
        (made,), (wanted,) = (
            pictures_of_artifacts(painted, [PAIR], one),
            pictures_of_checkpoint(painter, [PAIR], given=one),
        )
        assert snr_db(made, wanted) > 80
        (steered,), (alike,) = (
            pictures_of_artifacts(painted, [PAIR], one, [squares()]),
            pictures_of_checkpoint(edged, [PAIR], given=one, conditions=[squares()]),
        )
        assert snr_db(steered, alike) > 80
        assert snr_db(steered, made) < 60


def squares() -> Float32:
    """A condition picture."""
    places = np.arange(SIDE) // 4 % 2
    return (places[None, :] ^ places[:, None]).astype(np.float32)[None, None]


def test_golden_case_of_a_painter_with_an_adapter_holds_both(edged: Path) -> None:
    values = golden_source(open_checkpoint(edged)).generate(*PAIR)
    assert "given.mask" in values
    assert values["given.condition"].shape == (1, 1, SIDE, SIDE)
    taken = GoldenCase("case", *PAIR, values).inputs("unet")
    assert (taken["sample"].shape[1], taken["residual_0"].shape) == (2 * CHANNELS + 1, (1, 16, 8, 8))


def test_a_painter_sees_what_is_not_hidden_alone(painter: Path) -> None:
    everything = np.ones((1, 1, SIDE, SIDE), np.float32)
    requests = [PAIR, PAIR]
    for mask, alike in ((everything, True), (left_half(), False)):
        first, second = pictures_of_checkpoint(painter, requests, given=[given(mask, seed=1), given(mask, seed=2)])
        assert np.array_equal(first, second) == alike
    hidden = [Given(np.where(left_half() > 0, np.float32(value), np.float32(0.3)), left_half()) for value in (-1, 1)]
    hidden = [Given(np.repeat(one.image, 3, axis=1), one.mask) for one in hidden]
    first, second = pictures_of_checkpoint(painter, requests, given=hidden)
    assert np.array_equal(first, second)


def test_another_unet_keeps_latents(other_checkpoint: Path) -> None:
    plain, everything, half = (
        pictures_of_checkpoint(other_checkpoint, [PAIR], given=one)[0]
        for one in (None, [given(np.ones((1, 1, SIDE, SIDE), np.float32))], [given(left_half())])
    )
    assert snr_db(everything, plain) > 100
    # A cell at the border reaches a few pixels far.
    assert snr_db(half[:, :4], plain[:, :4]) > snr_db(half[:, -4:], plain[:, -4:])


def test_many_steps_cannot_keep_latents(other_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="needs a model that was trained for in-painting"):
        pictures_of_checkpoint(
            other_checkpoint, [PAIR], sampler=SamplerPlan(2, "ddim", 3.0), given=[given(left_half())]
        )


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_many_steps_of_artifacts_see_the_rest(painter: Path, tmp_path: Path) -> None:
    plan = SamplerPlan(2, "ddim", 3.0)
    golden, out = golden_of(painter, tmp_path / "golden", sampler=plan), tmp_path / "out"
    export(dataclasses.replace(recipe("onnx-fp32"), sampler=plan), painter, out, golden)
    one = [given(left_half())]
    made = pictures_of_artifacts(out, [PAIR], one)
    assert snr_db(made[0], pictures_of_checkpoint(painter, [PAIR], sampler=plan, given=one)[0]) > 80
    begun = [Start(given(left_half()).image, 0.5)]
    (made_from,) = pictures_of_artifacts(out, [PAIR], starts=begun)
    assert snr_db(made_from, pictures_of_checkpoint(painter, [PAIR], sampler=plan, starts=begun)[0]) > 80
    assert snr_db(made_from, pictures_of_artifacts(out, [PAIR])[0]) < 60


def test_what_calibrates_a_painter_is_made_by_all(painter: Path, other_checkpoint: Path) -> None:
    files = open_checkpoint(painter).file_hashes()
    everything = makers_of_inputs(MOBILE_DIFFUSION, files, "vae_decoder", inpaints=True)
    assert (
        makers_of_inputs(MOBILE_DIFFUSION, files, "unet", inpaints=True)
        == everything
        == makers_of_inputs(MOBILE_DIFFUSION, files, "vae_encoder")
    )
    assert len(everything) == 4
    assert len(makers_of_inputs(MOBILE_DIFFUSION, open_checkpoint(other_checkpoint).file_hashes(), "unet")) == 2


def test_an_export_without_encoder_says_what_to_do(exported: Exported) -> None:
    one = Given(np.zeros((1, 3, 64, 64), np.float32), middle(64, 64))
    with pytest.raises(Exception, match=r"has no vae_encoder; export it too: md-export onnx --encoder"):
        pictures_of_artifacts(exported("onnx", "int8"), [PAIR], [one])


def picture_file(path: Path, mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE), fill: int = 255) -> Path:
    image = Image.new("L", size, fill).convert(mode)
    image.save(path)
    return path


def test_pictures_are_read_as_they_are(tmp_path: Path) -> None:
    init, mask = picture_file(tmp_path / "init.png", fill=51), tmp_path / "mask.png"
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[3, 5], pixels[4, 6] = 128, 127
    Image.fromarray(pixels).save(mask)
    one = read_given(init, mask, (SIDE, SIDE))
    assert np.argwhere(one.mask).tolist() == [[0, 0, 3, 5]]
    assert one.image.shape == (1, 3, SIDE, SIDE)
    assert np.allclose(one.image, 51 / 127.5 - 1)


@pytest.mark.parametrize(
    ("init", "mask", "message"),
    [
        ({"size": (SIDE, 16)}, {}, r"has 32 × 16 pixels, the model's pictures have 32 × 32; scale or crop"),
        ({}, {"size": (8, 8)}, r"mask\.png has 8 × 8 pixels"),
        ({"mode": "RGBA"}, {}, r"its mode is RGBA\); save it as mode RGB"),
        ({"mode": "L"}, {}, r"init\.png is not a picture in colour"),
        ({}, {"mode": "RGB"}, r"mask\.png is not a mask.*save it as mode L"),
        ({}, {"fill": 0}, r"mask\.png is black everywhere"),
    ],
)
def test_pictures_that_do_not_fit(
    init: dict[str, object], mask: dict[str, object], message: str, tmp_path: Path
) -> None:
    first = picture_file(tmp_path / "init.png", **init)  # type: ignore[arg-type]
    second = picture_file(tmp_path / "mask.png", **{"mode": "L", **mask})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        read_given(first, second, (SIDE, SIDE))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\x00\x00", b"GIF89a\x01\x00"])
def test_files_that_are_no_pictures(content: bytes, tmp_path: Path) -> None:
    broken = tmp_path / "init.png"
    broken.write_bytes(content)
    with pytest.raises(UsageError, match=r"init\.png cannot be read as PNG or JPEG"):
        read_given(broken, broken, (SIDE, SIDE))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mask", "a.png"], "give it with --init-image"),
        (["--strength", "0.5"], "--init-image without --mask"),
        (["--strength", "0.5", "--init-image", "a.png", "--mask", "a.png"], "--init-image without --mask"),
    ],
)
def test_flags_that_need_each_other(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    result = CliRunner().invoke(cli, ["generate", "a cat", *flags, "-o", str(tmp_path / "out.png")])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


@pytest.mark.usefixtures("here")
def test_generate_paints_in_a_picture(painted: Path, tmp_path: Path) -> None:
    init, mask = picture_file(tmp_path / "init.png", fill=90), picture_file(tmp_path / "mask.png", mode="L")
    arguments = ["generate", "a cat", "--artifacts", painted, "--init-image", init, "--mask", mask, "-o"]
    result = CliRunner().invoke(cli, [str(argument) for argument in (*arguments, tmp_path / "out.png")])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == (SIDE, SIDE)
