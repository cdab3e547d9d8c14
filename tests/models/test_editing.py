"""UNets that edit a picture (InstructPix2Pix): its latents are beside the noise in every call."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from in_process import in_process
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.models.sampling.generate import draw_noise
from md_export.models.sampling.pictures import Start
from md_export.parity.golden.folder import read_golden, write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.judge import verify
from md_export.parity.metrics import compare
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Float32
from small_models import STABLE

PAIR = ("make it red", 3)
PLAN = SamplerPlan(2, "ddim", 7.5)


@pytest.fixture(scope="module")
def editor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, with twice as many input channels as the latent has."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    out = tmp_path_factory.mktemp("checkpoints") / "editor"
    channels = 2 * STABLE.vae.latent_channels
    write_checkpoint(
        out, dataclasses.replace(STABLE, denoiser=dataclasses.replace(STABLE.denoiser, in_channels=channels)), seed=7
    )
    return out


def picture(seed: int) -> Float32:
    height, width = STABLE.picture_shape
    return np.random.default_rng(seed).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)


@pytest.mark.seen("UNet with 8 channels (InstructPix2Pix)", "edits `--init-image`; image guidance is 1")
def test_a_guided_picture_is_that_of_diffusers(editor: Path) -> None:
    diffusers: Any = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    none = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        editor, torch_dtype=torch.float32, requires_safety_checker=False, **none
    )
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        PAIR[0],
        image=torch.from_numpy(picture(1)),
        num_inference_steps=PLAN.steps,
        guidance_scale=PLAN.guidance,
        image_guidance_scale=1.0,
        latents=torch.from_numpy(draw_noise(PAIR[1], STABLE.latent_shape)),
        output_type="np",
    ).images[0]
    for seed, alike in ((1, True), (2, False)):
        (made,) = pictures_of_checkpoint(editor, [PAIR], sampler=PLAN, starts=[Start(picture(seed), 1.0)])
        assert (compare(made, wanted.astype(np.float32)).psnr_db > 80) is alike


@pytest.mark.slow
def test_an_export_edits_as_torch_does(editor: Path, tmp_path: Path) -> None:
    golden, out = tmp_path / "golden", tmp_path / "out"
    golden.mkdir()
    write_golden(golden_source(open_checkpoint(editor), sampler=PLAN), [PAIR], golden)
    values = read_golden(golden).cases[0].values
    assert np.array_equal(values["given.edited"], values["vae_encoder.latent_mean"])
    with in_process():
        manifest, result = export(
            load_recipe(builtin_recipe("onnx", "fp32")).sampled(2, 7.5, "ddim"), editor, out, golden
        )
        assert result.passed
        assert "vae_encoder" in {entry.component for entry in manifest.artifacts}
        starts = [Start(picture(1), 1.0)]
        (made,) = pictures_of_artifacts(out, [PAIR], starts=starts)
        (wanted,) = pictures_of_checkpoint(editor, [PAIR], sampler=PLAN, starts=starts)
        assert compare(made, wanted).psnr_db > 60
        assert verify(out).passed
