"""Euler's method: constants and steps against diffusers' own scheduler, recipes and manifests that ask for it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from md_export.checkpoint import open_checkpoint
from md_export.engine.dependencies import steps_notes
from md_export.errors import GoldenError
from md_export.models.config import ModelConfig
from md_export.models.sampling.pictures import enter
from md_export.models.sampling.sampler import euler_of, one_step, sampler_for
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.parity.golden.folder import read_golden, write_golden
from md_export.parity.golden.prepare import golden_source, present_golden
from md_export.spec.recipe_file import recipe_from_toml
from md_export.spec.sampler import Euler, SamplerPlan
from md_export.spec.shipped_files import builtin_recipe

PLAN = SamplerPlan("euler", 3, 3.0)
SCHEDULES = [
    ScheduleConfig(prediction_type=kind, timestep_spacing=spacing)
    for kind, spacing in itertools.product(("epsilon", "v_prediction", "sample"), ("leading", "trailing", "linspace"))
]


def config_of(schedule: ScheduleConfig) -> ModelConfig:
    vae: Any = type("Vae", (), {"scaling_factor": 0.5})()
    return ModelConfig({}, None, vae, schedule)  # type: ignore[arg-type]


def diffusers_of(schedule: ScheduleConfig, steps: int) -> Any:
    unknown = ("set_alpha_to_one", "clip_sample")
    fields = {name: value for name, value in dataclasses.asdict(schedule).items() if name not in unknown}
    made: Any = EulerDiscreteScheduler
    scheduler = made(**fields)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.prediction_type}-{s.timestep_spacing}")
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_every_step_is_that_of_diffusers(schedule: ScheduleConfig, steps: int) -> None:
    """To 1e-5 of the largest value, since x is as large as the noise level."""
    scheduler = diffusers_of(schedule, steps)
    ours = sampler_for(euler_of(config_of(schedule), SamplerPlan("euler", steps, 3.0)))
    assert np.allclose(ours.timesteps, scheduler.timesteps.numpy(), rtol=1e-5)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    x = noise * scheduler.init_noise_sigma
    close(ours.start(noise.numpy()), x)
    for number, timestep in enumerate(scheduler.timesteps):
        output = torch.randn(1, 4, 8, 8, generator=generator)
        taken = scheduler.scale_model_input(x, timestep)
        close(ours.taken(number, x.numpy()), taken)
        after = scheduler.step(output, timestep, x).prev_sample
        close(ours.step(number, x.numpy(), output.numpy()), after)
        x = after


def close(made: Any, wanted: torch.Tensor) -> None:
    assert np.abs(made - wanted.numpy()).max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_picture_is_entered_at_the_noise_of_what_is_left() -> None:
    schedule = ScheduleConfig()
    config = config_of(schedule)
    entry = enter(schedule, one_step(config), euler_of(config, SamplerPlan("euler", 20, 3.0)), 0.63)
    assert isinstance(entry.steps, Euler)
    assert len(entry.steps.steps) == 12
    theirs = diffusers_of(schedule, 20)
    noise, latent = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    wanted = theirs.add_noise(latent, noise, theirs.timesteps[8:9])
    noised = entry.noised(latent.numpy() / np.float32(0.5), noise.numpy())
    close(sampler_for(entry.steps).start(noised), wanted)


def test_a_recipe_asks_for_it() -> None:
    text = builtin_recipe("onnx", "fp32").read_text() + '\n[sampler]\nkind = "euler"\nsteps = 3\nguidance = 3.0\n'
    recipe = recipe_from_toml(text.encode(), Path("mine.toml"))
    assert recipe.sampler == PLAN
    assert recipe.sampled(5, None).sampler == SamplerPlan("euler", 5, 3.0)


def test_golden_cases_and_artifacts_tell_the_steps(nano: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(nano)
    write_golden(golden_source(checkpoint, sampler=PLAN), [("a cat", 0)], tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert "ddim" not in index
    assert len(index["euler"]["steps"]) == 3
    (case,) = read_golden(tmp_path).cases
    first, *_ = case.calls("unet")
    taken = first.inputs("unet")["sample"]
    steps = euler_of(checkpoint.config, PLAN)
    scaled = case.values["given.noise"].astype(np.float32) * np.float32(steps.start * steps.steps[0].scale)
    assert np.allclose(taken[:1], scaled, rtol=1e-5)
    assert present_golden(checkpoint, tmp_path, PLAN) == tmp_path
    with pytest.raises(GoldenError, match="3 steps of Euler's method with guidance 3, which are not the recipe's"):
        present_golden(checkpoint, tmp_path, SamplerPlan("ddim", 3, 3.0))
    notes = steps_notes(checkpoint, PLAN)
    assert (notes["sampler"], float(notes["start"])) == ("euler", steps.start)
    assert [float(value) for value in notes["scale"].split(",")] == [step.scale for step in steps.steps]
