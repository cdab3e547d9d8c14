"""All sampling methods: constants and steps against diffusers' own schedulers, recipes that ask for them, and notes."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import arch_config
from md_export.checkpoint.configs import parse_config
from md_export.checkpoint.files import read_json
from md_export.engine.dependencies import steps_notes
from md_export.errors import ConfigError, GoldenError
from md_export.models.config import ModelConfig
from md_export.models.sampling.advice import advice_on_steps
from md_export.models.sampling.pictures import enter
from md_export.models.sampling.sampler import SCHEDULERS, Sampler, one_step, steps_of
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.parity.golden.folder import read_golden, write_golden
from md_export.parity.golden.prepare import golden_source, present_golden
from md_export.spec.names import METHODS, Method
from md_export.spec.recipe_file import recipe_from_toml
from md_export.spec.sampler import ManySteps, SamplerPlan
from md_export.spec.shipped_files import builtin_recipe

PLAN = SamplerPlan(3, "euler", 3.0)
CLASSES = {method: name for name, method in SCHEDULERS.items()}
KINDS, SPACINGS = ("epsilon", "v_prediction", "sample"), ("leading", "trailing", "linspace")
SCHEDULES = [
    ScheduleConfig(prediction_type=kind, timestep_spacing=spacing, set_alpha_to_one=one)
    for kind, spacing, one in itertools.product(KINDS, SPACINGS, (True, False))
]
SCHEDULES += [
    ScheduleConfig(prediction_type=kind, timestep_spacing=spacing, rescale_betas_zero_snr=True)
    for kind, spacing in itertools.product(KINDS[1:], SPACINGS)
]
SHAPE = (1, 4, 8, 8)


def config_of(schedule: ScheduleConfig) -> ModelConfig:
    vae: Any = type("Vae", (), {"scaling_factor": 0.5})()
    return ModelConfig({}, None, vae, schedule)  # type: ignore[arg-type]


def constants(schedule: ScheduleConfig, method: Method, steps: int) -> ManySteps:
    found = steps_of(config_of(schedule), SamplerPlan(steps, method, 3.0))
    assert found is not None
    return found


def diffusers_of(schedule: ScheduleConfig, method: Method, steps: int) -> Any:
    """The scheduler, with the schedule's table in float64: its own is rounded to float32."""
    kind: Any = getattr(diffusers, CLASSES[method])
    # As from a file: fields of other schedulers are kept, and some are read.
    scheduler = kind.from_config({k: v for k, v in dataclasses.asdict(schedule).items() if v is not None})
    if method == "flow_match_euler":
        scheduler.set_timesteps(steps)
        return scheduler
    alphas = schedule.alphas.copy()
    if method in ("euler", "euler_ancestral", "dpmpp_2m"):
        alphas[-1] = max(alphas[-1], 2.0**-24)
    scheduler.alphas_cumprod = torch.from_numpy(alphas)
    scheduler.final_alpha_cumprod = torch.tensor(schedule.last_alpha, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    return scheduler


def same(schedule: ScheduleConfig, method: Method, steps: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Take all steps with random outputs by both; the largest difference, relative to the largest value."""
    theirs, ours = diffusers_of(schedule, method, steps), Sampler(constants(schedule, method, steps))
    assert np.allclose([step.timestep for step in ours.steps], theirs.timesteps.numpy(), rtol=1e-5)
    noises, outputs = np.random.default_rng(0).standard_normal((2, steps + 1, *SHAPE)).astype(np.float32)
    fresh = np.concatenate([noises[1 + n] for n, step in enumerate(ours.steps) if step.noise] or [noises[0]])
    drawn = iter(torch.from_numpy(noises[1:]))
    monkeypatch.setattr(importlib.import_module(type(theirs).__module__), "randn_tensor", lambda *_, **__: next(drawn))
    x = torch.from_numpy(noises[0]) * float(getattr(theirs, "init_noise_sigma", 1.0))
    place, worst = ours.start(noises[0]), 0.0
    for number, (timestep, output) in enumerate(zip(theirs.timesteps, outputs, strict=False)):
        scaled = theirs.scale_model_input(x, timestep) if hasattr(theirs, "scale_model_input") else x
        worst = max(worst, apart(ours.unet_input(number, place), scaled))
        x = theirs.step(torch.from_numpy(output), timestep, x).prev_sample
        place = ours.step(number, place, output, fresh)
        worst = max(worst, apart(place.x, x))
    return worst


def apart(made: Any, wanted: torch.Tensor) -> float:
    return float(np.abs(made - wanted.numpy()).max() / max(1.0, float(wanted.abs().max())))


@pytest.mark.seen(
    "sampler: DDIM, Euler, Euler ancestral, DPM++ 2M, LCM, TCD",
    "each step equals diffusers' scheduler, for all prediction types and timestep spacings",
)
@pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda s: f"{s.prediction_type}-{s.timestep_spacing}-{s.rescale_betas_zero_snr:d}"
)
@pytest.mark.parametrize("method", METHODS[:-1])
def test_every_step_is_that_of_diffusers(
    schedule: ScheduleConfig, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "euler_ancestral" and schedule.prediction_type == "sample":
        pytest.skip("diffusers has no such steps")
    # Without any signal Euler's first level is 4096, and what float32 loses in the first step stays in x.
    most = 2e-3 if method.startswith("euler") and schedule.rescale_betas_zero_snr else 1e-5
    for steps in (1, 2, 7, 20):
        assert same(schedule, method, steps, monkeypatch) <= most


@pytest.mark.seen("sampler: flow-match Euler", "each step equals diffusers' scheduler")
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_every_step_of_flow_matching(shift: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(ScheduleConfig(shift=shift), "flow_match_euler", steps, monkeypatch) <= 1e-5


KARRAS = ScheduleConfig(use_karras_sigmas=True)
# The method, and fields of a scheduler's config that diffusers' class reads.
SOLVERS: dict[str, tuple[Method, ScheduleConfig]] = {
    "karras": ("euler", KARRAS),
    "karras, trailing, v": ("euler", replace(KARRAS, timestep_spacing="trailing", prediction_type="v_prediction")),
    "karras, linspace, limits": ("euler", replace(KARRAS, timestep_spacing="linspace", sigma_min=0.1, sigma_max=10.0)),
    "exponential": ("euler", ScheduleConfig(use_exponential_sigmas=True)),
    "last level": ("euler", replace(KARRAS, final_sigmas_type="sigma_min")),
    "ancestral reads none": ("euler_ancestral", KARRAS),
    "2M karras": ("dpmpp_2m", KARRAS),
    "2M karras, trailing, v": (
        "dpmpp_2m",
        replace(KARRAS, timestep_spacing="trailing", prediction_type="v_prediction"),
    ),
    "2M karras, limits": ("dpmpp_2m", replace(KARRAS, sigma_min=0.1, sigma_max=10.0)),
    "2M exponential": ("dpmpp_2m", ScheduleConfig(use_exponential_sigmas=True)),
    "2M lambdas": ("dpmpp_2m", ScheduleConfig(use_lu_lambdas=True, sigma_min=0.1)),
    "2M last level": ("dpmpp_2m", ScheduleConfig(final_sigmas_type="sigma_min")),
    "2M last level, lower order": ("dpmpp_2m", ScheduleConfig(final_sigmas_type="sigma_min", lower_order_final=False)),
    "2M last level, euler": ("dpmpp_2m", ScheduleConfig(final_sigmas_type="sigma_min", euler_at_final=True)),
    "2M first order": ("dpmpp_2m", ScheduleConfig(solver_order=1)),
    "2M SDE": ("dpmpp_2m", ScheduleConfig(algorithm_type="sde-dpmsolver++")),
    "2M SDE karras": ("dpmpp_2m", replace(KARRAS, algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min")),
    "2M of DEIS and UniPC": (
        "dpmpp_2m",
        replace(KARRAS, algorithm_type="deis", solver_type="bh2", final_sigmas_type="sigma_min"),
    ),
    "LCM's scaling": ("lcm", ScheduleConfig(timestep_scaling=3.0)),
}


@pytest.mark.seen(
    "Karras, exponential and Lu's noise levels, DPM++ 2M SDE, and other fields of a scheduler",
    "each step equals diffusers' scheduler",
)
@pytest.mark.parametrize("case", SOLVERS)
def test_every_step_with_fields_of_solvers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, schedule = SOLVERS[case]
    for steps in (1, 2, 7, 20):
        assert same(schedule, method, steps, monkeypatch) <= 1e-5
    if case != "ancestral reads none":
        plain = constants(ScheduleConfig(**{name: getattr(schedule, name) for name in PLAIN}), method, 7)
        assert constants(schedule, method, 7).steps != plain.steps


PLAIN = ("prediction_type", "timestep_spacing")
# The method, a field, its value, and what is said.
REFUSED: tuple[tuple[Method, str, object, str], ...] = (
    ("euler", "use_beta_sigmas", True, "use_beta_sigmas=True is not supported for euler; set use_beta_sigmas=False"),
    ("euler", "interpolation_type", "log_linear", "interpolation_type='log_linear' is not supported"),
    ("euler", "final_sigmas_type", "none", "final_sigmas_type='none'"),
    ("dpmpp_2m", "solver_order", 3, "solver_order=3 is not supported for dpmpp_2m; set solver_order=2, or change"),
    ("dpmpp_2m", "algorithm_type", "dpmsolver", "algorithm_type='dpmsolver'"),
    ("dpmpp_2m", "solver_type", "heun", "solver_type='heun'"),
    ("dpmpp_2m", "lambda_min_clipped", -1.0, "lambda_min_clipped=-1.0 .* set -2.68 or less"),
    ("flow_match_euler", "use_dynamic_shifting", True, "use_dynamic_shifting=True"),
    ("flow_match_euler", "use_karras_sigmas", True, "use_karras_sigmas=True"),
    ("flow_match_euler", "shift_terminal", 0.02, "shift_terminal=0.02"),
    ("flow_match_euler", "invert_sigmas", True, "invert_sigmas=True"),
    ("flow_match_euler", "stochastic_sampling", True, "stochastic_sampling=True"),
)


@pytest.mark.seen("fields of a scheduler that are not computed", "refused for the sampler that reads them, by name")
@pytest.mark.parametrize(("method", "field", "value", "said"), REFUSED)
def test_a_field_that_is_not_computed_is_refused(method: Method, field: str, value: Any, said: str) -> None:
    """With the checkpoint's own sampler; of one that does not read it, and of one step, nothing changes."""
    schedule = ScheduleConfig(**{field: value})
    with pytest.raises(ConfigError, match=f"scheduler/scheduler_config.json: {said}"):
        constants(schedule, method, 4)
    assert constants(schedule, "ddim", 4) == constants(ScheduleConfig(), "ddim", 4)
    assert one_step(config_of(schedule)) == one_step(config_of(ScheduleConfig()))


@pytest.mark.parametrize("method", ["euler", "dpmpp_2m"])
def test_levels_must_fall(method: Method) -> None:
    for largest in (9.0, 8.0):
        schedule = replace(KARRAS, algorithm_type="sde-dpmsolver++", sigma_min=9.0, sigma_max=largest)
        with pytest.raises(ConfigError, match="make noise levels that do not decrease at each step"):
            constants(schedule, method, 4)
    assert len(constants(replace(KARRAS, sigma_min=8.0, sigma_max=9.0), method, 4).steps) == 4


def test_fields_of_solvers_together() -> None:
    both = ScheduleConfig(use_karras_sigmas=True, use_exponential_sigmas=True)
    with pytest.raises(ConfigError, match="use_karras_sigmas with use_exponential_sigmas is not supported"):
        constants(both, "euler", 4)
    continuous = ScheduleConfig(timestep_type="continuous")
    assert constants(continuous, "euler", 4) == constants(ScheduleConfig(), "euler", 4)
    with pytest.raises(ConfigError, match="timestep_type='continuous'"):
        constants(replace(continuous, prediction_type="v_prediction"), "euler", 4)


@pytest.mark.parametrize("method", METHODS)
def test_what_diffusers_saves_is_read(method: Method, tmp_path: Path) -> None:
    """All fields of each class, also a DPM solver's ``-Infinity``."""
    kind: Any = getattr(diffusers, CLASSES[method])
    kind(num_train_timesteps=500).save_pretrained(tmp_path)
    found = parse_config(ScheduleConfig, "scheduler", read_json(tmp_path / "scheduler_config.json"))
    assert found.num_train_timesteps == 500


def test_another_schedule_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: methods, kinds and spacings exchanged differ by far more than is allowed."""
    theirs = ScheduleConfig()
    for other in (ScheduleConfig(prediction_type="v_prediction"), ScheduleConfig(beta_end=0.013)):
        made = constants(other, "dpmpp_2m", 7)
        monkeypatch.setitem(globals(), "constants", lambda *_, made=made: made)
        assert same(theirs, "dpmpp_2m", 7, monkeypatch) > 1e-3
        monkeypatch.undo()


def test_distilled_models_have_few_steps() -> None:
    with pytest.raises(ConfigError, match="distilled from 50 steps"):
        constants(ScheduleConfig(), "lcm", 51)


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        *((method, ScheduleConfig()) for method in ("ddim", "euler", "dpmpp_2m")),
        *((method, replace(KARRAS, prediction_type=kind)) for method in ("euler", "dpmpp_2m") for kind in KINDS[:2]),
    ],
)
def test_a_picture_is_entered_at_the_noise_of_what_is_left(method: Method, schedule: ScheduleConfig) -> None:
    entry = enter(schedule, one_step(config_of(schedule)), constants(schedule, method, 20), 0.63)
    assert entry.steps is not None
    assert len(entry.steps.steps) == 12
    assert entry.steps.steps[0].earlier == 0
    theirs = diffusers_of(schedule, method, 20)
    noise, latent = (torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    wanted = theirs.add_noise(latent, noise, theirs.timesteps[8:9])
    noised = entry.noised(latent.numpy() / np.float32(0.5), noise.numpy())
    assert apart(Sampler(entry.steps).start(noised).x, wanted) <= 1e-5


def test_a_recipe_asks_for_it() -> None:
    text = builtin_recipe("onnx", "fp32").read_text() + '\n[sampler]\nkind = "euler"\nsteps = 3\nguidance = 3.0\n'
    recipe = recipe_from_toml(text.encode(), Path("mine.toml"))
    assert recipe.sampler == PLAN
    assert recipe.sampled(5, None).sampler == SamplerPlan(5, "euler", 3.0)
    assert recipe.sampled(5, None, "lcm").sampler == SamplerPlan(5, "lcm", 3.0)


@pytest.mark.parametrize(("method", "guidance"), [("euler", 7.5), ("lcm", 1.0), ("tcd", 1.0)])
def test_methods_of_distilled_models_are_not_guided(method: Method, guidance: float) -> None:
    config = dataclasses.replace(config_of(ScheduleConfig()), method=method)
    found = steps_of(config, SamplerPlan(4))
    assert found is not None
    assert (found.method, found.guidance, found.is_guided) == (method, guidance, guidance > 1)


def test_golden_cases_and_artifacts_tell_the_steps(nano: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(nano)
    write_golden(golden_source(checkpoint, sampler=PLAN), [("a cat", 0)], tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    assert (index["steps"]["method"], len(index["steps"]["steps"])) == ("euler", 3)
    (case,) = read_golden(tmp_path).cases
    first, *_ = case.calls("unet")
    taken = first.inputs("unet")["sample"]
    steps = steps_of(checkpoint.config, PLAN)
    assert steps is not None
    scaled = case.values["given.noise"].astype(np.float32) * np.float32(steps.start * steps.steps[0].scale)
    assert np.allclose(taken[:1], scaled, rtol=1e-5)
    assert present_golden(checkpoint, tmp_path, PLAN) == tmp_path
    with pytest.raises(GoldenError, match="3 steps of euler with guidance 3, which are not the recipe's"):
        present_golden(checkpoint, tmp_path, SamplerPlan(3, "ddim", 3.0))
    notes = steps_notes(checkpoint, PLAN)
    assert (notes["sampler"], float(notes["start"])) == ("euler", steps.start)
    assert [float(value) for value in notes["scale"].split(",")] == [step.scale for step in steps.steps]


@pytest.mark.seen("few steps without guidance", "batch 1 and no empty prompt")
@pytest.mark.parametrize("method", ["ddim", "euler_ancestral", "lcm"])
def test_without_guidance_each_call_gets_one_prompt(nano: Path, tmp_path: Path, method: Method) -> None:
    """And the noise that steps add is among the case's values."""
    torch.set_num_threads(1)
    plan = SamplerPlan(3, method, 1.0)
    write_golden(golden_source(open_checkpoint(nano), sampler=plan), [("a cat", 0)], tmp_path)
    (case,) = read_golden(tmp_path).cases
    assert "given.input_ids" in case.values
    assert [call.inputs("unet")["sample"].shape[0] for call in case.calls("unet")] == [1, 1, 1]
    added = {"ddim": 0, "euler_ancestral": 2, "lcm": 2}[method]
    assert ("given.fresh_noise" in case.values) == (added > 0)
    assert not added or case.values["given.fresh_noise"].shape[0] == added


@pytest.mark.seen(
    "a model that was not trained for one step", "exported, with a line that says so; the cost of guidance is said"
)
@pytest.mark.parametrize(
    ("family", "schedule", "method", "plan", "said"),
    [
        ("nano", ScheduleConfig(), "ddim", None, None),
        ("sd15", ScheduleConfig(), "ddim", None, "expect noise; give --steps"),
        ("sd15", ScheduleConfig(), "lcm", None, None),
        ("sd15", ScheduleConfig(timestep_spacing="trailing"), "euler", None, None),
        ("sd15", ScheduleConfig(), "ddim", SamplerPlan(20), "guidance 7.5: each of 20 calls of the unet computes two"),
        ("dit", ScheduleConfig(), "ddim", SamplerPlan(20), "each of 20 calls of the transformer computes two"),
        ("sd15", ScheduleConfig(), "ddim", SamplerPlan(20, guidance=1.0), None),
        ("sd15", ScheduleConfig(), "lcm", SamplerPlan(4), None),
        ("sd15", ScheduleConfig(), None, SamplerPlan(20, guidance=1.0), "scheduler is not supported; ddim is used"),
        ("sd15", ScheduleConfig(), None, SamplerPlan(20, "euler", guidance=1.0), None),
    ],
)
def test_what_is_said_of_steps(
    family: str, schedule: ScheduleConfig, method: Method | None, plan: SamplerPlan | None, said: str | None
) -> None:
    config = dataclasses.replace(arch_config(family), schedule=schedule, method=method)
    found = advice_on_steps(config, plan)
    assert found is None if said is None else found is not None and said in found
