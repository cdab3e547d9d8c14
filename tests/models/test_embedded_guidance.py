"""UNets that embed the scale of guidance (LCM): the embedding is a constant of the export, and no sample is doubled."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.errors import ConfigError
from md_export.models.sampling.generate import PictureRequest, draw_noise
from md_export.models.sampling.sampler import one_step, steps_of
from md_export.parity.golden.prepare import golden_source
from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.recipe_file import recipe_from_toml
from md_export.spec.sampler import SamplerPlan, steps_in_words
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.variant import Variant
from mutations import edit_json
from small_models import STABLE, random_inputs

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
PROMPT, SEED, CLOSE = "a red apple", 3, 1e-4
LCM = dataclasses.replace(STABLE, denoiser=dataclasses.replace(STABLE.denoiser, time_cond_proj_dim=16))


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "lcm"
    write_checkpoint(out, LCM, seed=7, dtype="float32")
    edit_json(out / "model_index.json", lambda index: index.update(scheduler=["diffusers", "LCMScheduler"]))
    edit_json(out / "scheduler" / "scheduler_config.json", lambda config: config.update(_class_name="LCMScheduler"))
    return out


def ours(folder: Path, plan: SamplerPlan) -> dict[str, Any]:
    checkpoint = open_checkpoint(folder).at(Variant(guidance=plan.guidance))
    (values,) = golden_source(checkpoint, sampler=plan).pipeline.values([PictureRequest(PROMPT, SEED)])
    return values


@pytest.mark.seen("LCM's UNet that embeds guidance", "folded for `--guidance` (8.5 by default); one sample a call")
@pytest.mark.parametrize(("steps", "guidance"), [(4, None), (2, 4.0)])
def test_pictures_are_those_of_diffusers(
    lcm: Path, monkeypatch: pytest.MonkeyPatch, steps: int, guidance: float | None
) -> None:
    none = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    pipe = diffusers.LatentConsistencyModelPipeline.from_pretrained(lcm, requires_safety_checker=False, **none)
    pipe.set_progress_bar_config(disable=True)
    values = ours(lcm, SamplerPlan(steps, guidance=guidance))
    module = "diffusers.schedulers.scheduling_lcm.randn_tensor"

    def theirs(scale: dict[str, float]) -> Any:
        drawn = iter(torch.from_numpy(values["given.fresh_noise"])[:, None])
        monkeypatch.setattr(module, lambda *_, **__: next(drawn))
        noise = torch.from_numpy(draw_noise(SEED, LCM.latent_shape))
        return pipe(PROMPT, num_inference_steps=steps, latents=noise, output_type="np", **scale).images[0]

    assert (
        np.abs(theirs({} if guidance is None else {"guidance_scale": guidance}) - values["made.picture"]).max() < CLOSE
    )
    assert np.abs(theirs({"guidance_scale": 1.5}) - values["made.picture"]).max() > CLOSE


def test_a_recipe_and_its_constants(lcm: Path) -> None:
    """No second sample, and an app that reads the notes doubles none."""
    text = builtin_recipe("onnx", "fp32").read_text() + "\n[sampler]\nsteps = 3\nguidance = 4.0\n"
    recipe = recipe_from_toml(text.encode(), Path("mine.toml"))
    config = open_checkpoint(lcm).at(recipe.variant).config
    made = steps_of(config, recipe.sampler)
    assert made is not None
    assert (config.embedded_guidance, made.guidance, made.is_guided) == (4.0, 4.0, False)
    assert (made.notes["guidance"], made.notes["embedded_guidance"]) == ("1.0", "4.0")
    assert steps_in_words(made) == "3 steps of lcm with guidance 4 embedded in the UNet"
    assert made.agrees(recipe.sampler) and not made.agrees(SamplerPlan(3))
    default = steps_of(open_checkpoint(lcm).config, SamplerPlan(3))
    assert default is not None and default.guidance == 8.5 and default.agrees(SamplerPlan(3))
    with pytest.raises(ConfigError, match="a negative prompt needs guidance, and lcm runs without"):
        steps_of(config, SamplerPlan(3, negative="blue"))


def test_other_models_have_no_such_constant(stable_checkpoint: Path) -> None:
    config = open_checkpoint(stable_checkpoint).at(Variant(guidance=4.0)).config
    assert (config.embedded_guidance, config.variant) == (None, Variant())
    made = steps_of(config, SamplerPlan(3, "ddim", 4.0))
    assert made is not None and made.is_guided and "embedded_guidance" not in made.notes


def test_the_timestep_is_folded_with_it(lcm: Path) -> None:
    checkpoint, inputs = open_checkpoint(lcm), [torch.from_numpy(x) for x in random_inputs("unet", LCM, 2).values()]
    with torch.no_grad():
        wanted, module = checkpoint.module("unet")(*inputs), checkpoint.module("unet")
        apply_rewrites(("fold_timestep",), "unet", module, one_step(LCM), Consent())
        other = checkpoint.at(Variant(guidance=1.0)).module("unet")(*inputs)
        assert torch.allclose(module(inputs[0], *inputs[2:]), wanted, atol=1e-5)
    assert not torch.allclose(other, wanted, atol=1e-3)
