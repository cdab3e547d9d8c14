"""A picture's latents under noise in place of noise alone: where the schedule is entered, by torch and by artifacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from in_process import in_process
from md_export.checkpoint import open_checkpoint
from md_export.cli import cli
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import ArtifactError, UsageError
from md_export.models.config import ModelConfig
from md_export.models.sampling.pictures import Given, Start, enter, middle, read_start
from md_export.models.sampling.sampler import one_step, steps_of
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.metrics import snr_db
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import builtin_recipe

SIDE = 32
PAIR = ("a cat", 0)
PROMPT = "a large green circle on the left, white background"


@pytest.fixture(scope="module")
def encoded(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with the VAE encoder, judged by one golden case."""
    folder = tmp_path_factory.mktemp("encoded")
    (folder / "golden").mkdir()
    write_golden(golden_source(open_checkpoint(other_checkpoint), encodes=True), [PAIR], folder / "golden")
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).widened(("vae_encoder",))
    with in_process():
        export(recipe, other_checkpoint, folder / "out", folder / "golden")
    return folder / "out"


@pytest.fixture
def here() -> Iterator[None]:
    with in_process():
        yield


def image(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (1, 3, SIDE, SIDE)).astype(np.float32)


# --- where the schedule is entered


def test_one_step_is_taken_from_the_timestep_in_between(other_config: ModelConfig) -> None:
    last = one_step(other_config)
    entry = enter(other_config.schedule, last, None, 0.5)
    assert entry.one_step.timestep == 500
    assert entry.signal**2 == pytest.approx(other_config.schedule.alpha_cumprod(500))
    noise, latent = (np.random.default_rng(seed).standard_normal((1, 8, 4, 4)).astype(np.float32) for seed in (1, 2))
    noised = entry.noised(latent, noise)
    # Whoever knows the noise gets the latents back, by the constants of the new timestep.
    x0 = entry.one_step.a * noised + entry.one_step.b * noise
    assert other_config.schedule.prediction_type == "epsilon"
    assert np.allclose(x0, latent * last.scaling_factor, atol=1e-5)


def test_noise_is_that_of_diffusers() -> None:
    diffusers: Any = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    theirs = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    schedule = ScheduleConfig()
    noise, latent = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    config = ModelConfig({}, None, type("Vae", (), {"scaling_factor": 1.0})(), schedule)  # type: ignore[arg-type]
    entry = enter(schedule, one_step(config), steps_of(config, SamplerPlan(20, "ddim", 7.5)), 0.63)
    assert entry.steps is not None
    # As diffusers counts: int(20 * 0.63) steps are left.
    assert len(entry.steps.steps) == 12
    timestep = torch.tensor([int(entry.steps.steps[0].timestep)])
    wanted = theirs.add_noise(latent, noise, timestep).numpy()
    assert np.allclose(entry.noised(latent.numpy(), noise.numpy()), wanted, atol=1e-6)


def test_nothing_is_left_of_the_picture_at_strength_1(other_config: ModelConfig) -> None:
    step, steps = one_step(other_config), steps_of(other_config, SamplerPlan(4, "ddim", 3.0))
    entry = enter(other_config.schedule, step, steps, 1)
    noise = np.ones((1, 8, 4, 4), np.float32)
    assert (entry.one_step, entry.steps) == (step, steps)
    assert entry.noised(noise * 7, noise) is noise


def test_a_strength_that_leaves_no_step(other_config: ModelConfig) -> None:
    steps = steps_of(other_config, SamplerPlan(4, "ddim", 3.0))
    with pytest.raises(UsageError, match=r"0\.2 leaves none of 4 steps; give at least 0\.25"):
        enter(other_config.schedule, one_step(other_config), steps, 0.2)


@pytest.mark.parametrize("strength", [0, -1, 1.5, float("nan")])
def test_strengths_that_are_none(strength: float) -> None:
    with pytest.raises(UsageError, match="is not above 0 and at most 1"):
        Start(image(), strength)


# --- pictures


@pytest.mark.usefixtures("here")
def test_artifacts_start_where_torch_starts(encoded: Path, other_checkpoint: Path) -> None:
    (plain,) = pictures_of_checkpoint(other_checkpoint, [PAIR])
    for strength in (0.4, 1.0):
        starts = [Start(image(), strength)]
        (made,) = pictures_of_artifacts(encoded, [PAIR], starts=starts)
        (wanted,) = pictures_of_checkpoint(other_checkpoint, [PAIR], starts=starts)
        assert snr_db(made, wanted) > 80
        assert np.array_equal(wanted, plain) == (strength == 1)
    # The picture that is started from is seen in the one that is made.
    assert snr_db(pictures_of_checkpoint(other_checkpoint, [PAIR], starts=[Start(image(1), 0.4)])[0], made) < 60


def test_less_strength_keeps_more(nano: Path) -> None:
    encoder = nano / "siblings" / "encoder"
    (red,) = pictures_of_checkpoint(nano, [(PROMPT.replace("green", "red"), 0)])
    given = np.ascontiguousarray(red.transpose(2, 0, 1)[None] * 2 - 1)
    green, far, near = (
        pictures_of_checkpoint(encoder, [(PROMPT, 1)], starts=[Start(given, strength)])[0]
        for strength in (1, 0.6, 0.05)
    )
    assert snr_db(near, red) > snr_db(far, red) + 6
    assert snr_db(far, green) > snr_db(near, green) + 6


@pytest.mark.usefixtures("here")
def test_latents_of_a_given_picture_are_kept(encoded: Path, other_checkpoint: Path) -> None:
    """In-painting by any UNet, which needs the same export."""
    one = [Given(image(), middle(SIDE, SIDE))]
    (made,) = pictures_of_artifacts(encoded, [PAIR], one)
    assert snr_db(made, pictures_of_checkpoint(other_checkpoint, [PAIR], given=one)[0]) > 80


def edited(encoded: Path, folder: Path, change: Any) -> Path:
    copy = Path(shutil.copytree(encoded, folder / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_a_folded_timestep_is_the_only_one(encoded: Path, tmp_path: Path) -> None:
    def fold(manifest: Any) -> None:
        (unet,) = (entry for entry in manifest["artifacts"] if entry["component"] == "unet")
        unet["inputs"] = [spec for spec in unet["inputs"] if spec["name"] != "timestep"]

    with pytest.raises(UsageError, match="has the fixed timestep 999"):
        pictures_of_artifacts(edited(encoded, tmp_path, fold), [PAIR], starts=[Start(image(), 0.5)])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("schedule", [None, {"num_train_timesteps": 10**9}, {"beta_end": 2.0}, {"beta_schedule": "x"}])
def test_an_export_that_does_not_say_how_much_noise(
    encoded: Path, tmp_path: Path, schedule: dict[str, Any] | None
) -> None:
    def change(manifest: Any) -> None:
        manifest["schedule"] = schedule and {**manifest["schedule"], **schedule}

    with pytest.raises(ArtifactError, match="export again"):
        pictures_of_artifacts(edited(encoded, tmp_path, change), [PAIR], starts=[Start(image(), 0.5)])


@pytest.mark.usefixtures("here")
def test_generate_starts_from_a_file(encoded: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "init.png", tmp_path / "out.png"
    Image.new("RGB", (SIDE, SIDE), (51, 0, 255)).save(file)
    start = read_start(file, 0.3, (SIDE, SIDE))
    assert np.allclose(start.image[0, :, 0, 0], [-0.6, -1, 1])
    arguments = ["generate", "a cat", "--artifacts", encoded, "--init-image", file, "--strength", 0.3, "-o", out]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        made = np.asarray(picture, np.float32) / 255
    (wanted,) = pictures_of_artifacts(encoded, [PAIR], starts=[start])
    assert np.abs(made - wanted).max() < 0.01


def test_a_start_of_another_size(tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE // 2)).save(tmp_path / "init.png")
    with pytest.raises(UsageError, match="has 32 × 16 pixels"):
        read_start(tmp_path / "init.png", 0.5, (SIDE, SIDE))
