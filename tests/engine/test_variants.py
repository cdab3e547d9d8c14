"""Variants of a checkpoint through exports: pictures that are not square, another only timestep, CLIP skip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler
from transformers import CLIPTextModel

from md_export.checkpoint import open_checkpoint
from md_export.cli import cli
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import GoldenError, RecipeError, UsageError
from md_export.models.config import ModelConfig
from md_export.models.sampling.sampler import one_step
from md_export.parity.golden.folder import read_index, write_golden
from md_export.parity.golden.prepare import golden_source, present_golden
from md_export.parity.judge import verify
from md_export.parity.metrics import compare
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.variant import Variant

PAIR = ("a cat", 0)
WIDE = Variant((48, 32))


def cases_of(checkpoint: Path, folder: Path, variant: Variant) -> Path:
    folder.mkdir()
    write_golden(golden_source(open_checkpoint(checkpoint).at(variant)), [PAIR], folder)
    return folder


@pytest.fixture(scope="module")
def wide_cases(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases_of(other_checkpoint, tmp_path_factory.mktemp("golden") / "wide", WIDE)


@pytest.mark.seen("size that is not square", "`--size 512x768`, width and height")
@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision", "parts"), [("onnx", "fp32", ()), ("tflite", "fp16", ("unet",))])
def test_pictures_that_are_not_square(
    other_checkpoint: Path, wide_cases: Path, tmp_path: Path, target: str, precision: str, parts: tuple[str, ...]
) -> None:
    recipe, out = load_recipe(builtin_recipe(target, precision)).varied(WIDE).narrowed(parts), tmp_path / "out"
    manifest, result = export(recipe, other_checkpoint, out, wide_cases)
    assert result.passed
    assert manifest.recipe.name.endswith("-48x32")
    assert sorted(manifest.entry_for("unet").inputs[0].shape) == [1, 8, 8, 12]
    with pytest.raises(GoldenError, match="latents of 12 × 8, the artifacts take 8 × 12"):
        verify(out, cases_of(other_checkpoint, tmp_path / "tall", Variant((32, 48))))
    if parts:
        return
    (made,), (wanted,) = pictures_of_artifacts(out, [PAIR]), pictures_of_checkpoint(other_checkpoint, [PAIR], WIDE)
    assert made.shape == (32, 48, 3)
    assert compare(made, wanted).psnr_db > 60


@pytest.mark.parametrize(("text", "size"), [("48", 48), ("48x32", (48, 32))])
def test_sizes_on_the_command_line(other_checkpoint: Path, tmp_path: Path, text: str, size: object) -> None:
    out = tmp_path / "golden"
    arguments = ["golden", str(other_checkpoint), "--prompt", "a cat", "--size", text, "-o", str(out)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert present_golden(open_checkpoint(other_checkpoint).at(Variant(size)), out) == out  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0", "48x", "x48", "48x48x48", "-48", "4.5", "²", "999999"])
def test_what_is_no_size(text: str, nano: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["golden", str(nano), "--prompt", "a", "--size", text, "-o", str(tmp_path / "x")])
    assert (result.exit_code, "is not a size" in result.output) == (2, True)


@pytest.mark.seen("one-step model that starts before the last timestep", "`--timestep 800`, as Hyper-SD needs")
def test_the_step_at_another_timestep_is_that_of_the_scheduler(other_config: ModelConfig) -> None:
    """Hyper-SD's one-step models begin at 800."""
    schedule = other_config.schedule
    constants = one_step(other_config.at(Variant(timestep=800)))
    fields = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "clip_sample")
    scheduler: Any = DDIMScheduler(**{name: getattr(schedule, name) for name in fields})  # type: ignore[no-untyped-call]
    scheduler.set_timesteps(1)
    noise, output = torch.randn((2, 1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    wanted = scheduler.step(output, 800, noise).pred_original_sample
    made = constants.a * noise + constants.b * output
    assert constants.timestep == 800
    assert compare(made.numpy(), wanted.numpy()).snr_db > 90
    last = one_step(other_config)
    assert compare((last.a * noise + last.b * output).numpy(), wanted.numpy()).snr_db < 20


@pytest.mark.parametrize(
    ("variant", "message"),
    [(Variant(timestep=1000), "timesteps 0 to 999"), (Variant(clip_skip=2), "the text encoder has 1 layers")],
)
def test_variants_that_a_checkpoint_does_not_have(other_config: ModelConfig, variant: Variant, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        other_config.at(variant)


def test_one_timestep_and_many_steps_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match=r"timestep is for one step and \[sampler\] sets its timesteps"):
        load_recipe(builtin_recipe("onnx", "fp32")).varied(Variant(timestep=800)).sampled(4, 1.0)


@pytest.mark.seen("CLIP skip", "`--clip-skip 1` is diffusers' `clip_skip=1`")
def test_clip_skip_is_diffusers_clip_skip(nano: Path) -> None:
    """``clip_skip`` n of diffusers' pipelines: the hidden state before the last n layers, through the last norm."""
    reference: Any = CLIPTextModel.from_pretrained(nano / "text_encoder", attn_implementation="eager")
    reference = reference.eval().float()
    ids = torch.arange(77)[None] % 300
    made = open_checkpoint(nano).at(Variant(clip_skip=1)).module("text_encoder")(ids)
    with torch.no_grad():
        hidden = reference(ids, output_hidden_states=True).hidden_states
        norm = reference.text_model.final_layer_norm if hasattr(reference, "text_model") else reference.final_layer_norm
        wanted, whole = norm(hidden[-2]), norm(hidden[-1])
    assert compare(made.numpy(), wanted.numpy()).snr_db > 90
    assert compare(made.numpy(), whole.numpy()).snr_db < 40


@pytest.mark.slow
def test_an_export_with_clip_skip_and_a_timestep(nano: Path, tmp_path: Path) -> None:
    variant, golden, out = Variant(timestep=800, clip_skip=1), tmp_path / "golden", tmp_path / "out"
    cases_of(nano, golden, variant)
    assert read_index(golden).clip_skip == 1
    recipe = load_recipe(builtin_recipe("onnx", "fp32")).varied(variant)
    manifest, result = export(recipe, nano, out, golden)
    assert result.passed
    assert manifest.recipe.name == "onnx-fp32-t800-skip1"
    assert read_manifest(out).one_step.timestep == 800
    (made,) = pictures_of_artifacts(out, [PAIR])
    for other, alike in ((variant, True), (Variant(timestep=800), False), (Variant(clip_skip=1), False)):
        (wanted,) = pictures_of_checkpoint(nano, [PAIR], other)
        assert bool(np.abs(made - wanted).max() < 1e-3) is alike
    with pytest.raises(GoldenError, match=r"of another timestep or clip_skip .*--timestep 800 --clip-skip 1 -o DIR"):
        export(recipe, nano, tmp_path / "again", cases_of(nano, tmp_path / "plain", Variant()))
