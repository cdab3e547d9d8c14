"""Many steps: the coefficients and the walk against diffusers' own scheduler, what is asked for, and golden cases."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler
from safetensors.numpy import load_file, save_file

from md_export.checkpoint import open_checkpoint
from md_export.cli import cli
from md_export.engine.dependencies import steps_notes
from md_export.engine.generate import pictures_of_checkpoint
from md_export.errors import ConfigError, GoldenError, RecipeError
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.sampling.ddim import ddim
from md_export.models.sampling.sampler import Sampler, steps_of
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.walk import Steps, Tensors
from md_export.parity.golden.folder import read_golden, write_golden
from md_export.parity.golden.prepare import golden_source, planned_cases, present_golden
from md_export.parity.golden.surface import CalibrationInputs, each_call
from md_export.parity.metrics import snr_db
from md_export.parity.rewritten_module import rewritten
from md_export.spec.names import METHODS
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import ManySteps, SamplerPlan, Step, sampler_of
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, Arrays, Float32
from md_export.system.files import sha256_of
from mutations import edit_json

PLAN = SamplerPlan(3, "ddim", 7.5)
SCHEDULES = [
    ScheduleConfig(prediction_type=kind, timestep_spacing=spacing, set_alpha_to_one=one)
    for kind, spacing, one in itertools.product(
        ("epsilon", "v_prediction", "sample"), ("leading", "trailing", "linspace"), (True, False)
    )
]


def diffusers_of(schedule: ScheduleConfig, steps: int) -> Any:
    made: Any = DDIMScheduler
    scheduler = made.from_config({k: v for k, v in dataclasses.asdict(schedule).items() if v is not None})
    scheduler.set_timesteps(steps)
    return scheduler


def ddim_for(schedule: ScheduleConfig, steps: int, guidance: float) -> ManySteps:
    return ManySteps("ddim", guidance, 1.0, ddim(schedule, steps).steps, 0.5, schedule.prediction_type)


class FakeUNet:
    """Smooth in all that it takes, and another function for every timestep and text."""

    def __init__(self) -> None:
        self.taken: list[Arrays] = []

    def __call__(self, batches: Sequence[Arrays]) -> list[Array]:
        self.taken += batches
        return [self._output(**{name: value.astype(np.float32) for name, value in b.items()}) for b in batches]

    def _output(self, sample: Float32, timestep: Float32, encoder_hidden_states: Float32) -> Array:
        made: Array = np.tanh(sample + timestep / 1000 + encoder_hidden_states.mean((1, 2))[:, None, None, None])
        return made


def denoise(unet: FakeUNet, given: Sequence[Arrays], constants: ManySteps) -> list[Array]:
    """All steps of some pictures, by the executor of the graph."""
    texts = "text_encoder.last_hidden_state"
    pictures: list[Tensors] = []
    for one in given:
        without, text = np.split(one["encoder_hidden_states"], 2)
        ids = np.zeros((1, 5), np.int32)
        values = {"given.noise": one["sample"], f"{texts}.0": without, f"{texts}.1": text}
        pictures.append(values | {"given.input_ids.0": ids, "given.input_ids.1": ids})
    steps = Steps(MOBILE_DIFFUSION, (MOBILE_DIFFUSION["unet"],), Sampler(constants))
    steps.take(lambda _, batches: [{"out_sample": output} for output in unet(batches)], pictures)
    return [values["sampler.latent"] for values in pictures]


def start(seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    shapes = {"sample": (1, 4, 8, 8), "encoder_hidden_states": (2, 5, 3)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def by_diffusers(given: Arrays, schedule: ScheduleConfig, steps: int, guidance: float) -> Array:
    """Classifier-free guidance as StableDiffusionPipeline writes it."""
    scheduler, unet = diffusers_of(schedule, steps), FakeUNet()
    x = torch.from_numpy(given["sample"])
    for timestep in scheduler.timesteps:
        doubled = torch.cat([x] * 2).numpy()
        (output,) = unet([{**given, "sample": doubled, "timestep": np.asarray([timestep], np.float32)}])
        uncond, text = torch.from_numpy(output).chunk(2)
        x = scheduler.step(uncond + guidance * (text - uncond), timestep, x).prev_sample
    latent: Array = (x / 0.5).numpy()
    return latent


@pytest.mark.parametrize("schedule", SCHEDULES[::2], ids=lambda s: f"{s.prediction_type}-{s.timestep_spacing}")
def test_the_whole_walk_is_that_of_diffusers(schedule: ScheduleConfig) -> None:
    given, steps, unet = [start(0), start(1)], ddim_for(schedule, 20, 7.5), FakeUNet()
    made = denoise(unet, given, steps)
    for one, latent in zip(given, made, strict=True):
        wanted = by_diffusers(one, schedule, 20, 7.5)
        assert snr_db(latent, wanted) > 90
        # What the comparison must see: guidance left out or off, texts exchanged.
        assert snr_db(latent, by_diffusers(one, schedule, 20, 1.0)) < 40
        assert snr_db(latent, by_diffusers(one, schedule, 20, 7.4)) < 60
        other = {**one, "encoder_hidden_states": one["encoder_hidden_states"][::-1].copy()}
        assert snr_db(latent, by_diffusers(other, schedule, 20, 7.5)) < 40
    assert len(unet.taken) == 40
    assert all(np.array_equal(*batch["sample"]) for batch in unet.taken)


def test_steps_that_a_schedule_does_not_have() -> None:
    with pytest.raises(ConfigError, match="start at 1000"):
        ddim(ScheduleConfig(), 1000)
    with pytest.raises(ConfigError, match="20 steps"):
        ddim(ScheduleConfig(num_train_timesteps=10, steps_offset=0), 20)
    with pytest.raises(ConfigError, match="set it to false"):
        ddim(ScheduleConfig(clip_sample=True), 50)
    with pytest.raises(ConfigError, match="timestep_spacing='even'"):
        ddim(ScheduleConfig(timestep_spacing="even"), 50)


@pytest.mark.parametrize(("count", "places"), [(1, (0,)), (3, (0, 1, 2)), (4, (0, 1, 2, 3)), (50, (0, 16, 33, 49))])
def test_the_first_and_the_last_step_are_recorded(count: int, places: tuple[int, ...]) -> None:
    assert ManySteps("ddim", 2.0, 1.0, (Step(0.0, 1.0, 1.0),) * count, 1.0, "sample").recorded == places


@pytest.fixture(scope="module")
def plain() -> Recipe:
    return load_recipe(builtin_recipe("onnx", "fp32"))


def test_what_a_recipe_may_ask_for(plain: Recipe) -> None:
    many = plain.sampled(50, None)
    assert (many.name, many.sampler) == ("onnx-fp32-steps", SamplerPlan(50))
    assert many.sampled(20, None).sampler == SamplerPlan(20)
    assert many.sampled(None, 3.0, "lcm").sampler == SamplerPlan(50, "lcm", 3.0)
    assert plain.sampled(None, None) == plain
    for steps, guidance, words in ((0, None, "steps"), (1001, None, "steps"), (50, 0.5, "guidance"), (50, 1e9, "guid")):
        for recipe in (plain, many):
            with pytest.raises(RecipeError, match=words):
                recipe.sampled(steps, guidance)
    with pytest.raises(RecipeError, match="--steps 50"):
        sampler_of(None, 7.5)
    for name in ("fold_timestep", "fold_x0"):
        with pytest.raises(RecipeError, match=f"{name}: valid for one step only"):
            dataclasses.replace(many, rewrites=(name,))
    with pytest.raises(RecipeError, match="layout swift is for one step"):
        dataclasses.replace(many, target="coreml", layout="swift")


def test_the_command_line_says_what_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    for arguments, words in (
        (["onnx", "--fp32", "--guidance", "7.5"], "--steps 50"),
        (["onnx", "--fp32", "--steps", "50", "--rewrite", "fold_timestep"], "fold_timestep: valid for one step"),
        (["onnx", "--fp16", "--int8"], "--int8 and --fp16 each name a recipe; give one of them"),
        (["generate", "a cat", "--guidance", "7.5"], "--steps 50"),
        (["generate", "a cat", "--negative-prompt", "a dog"], "a negative prompt needs guidance"),
        (["generate", "a cat", "--artifacts", str(tmp_path), "--steps", "50"], "leave out --steps"),
    ):
        found = CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / "out")])
        assert words in str(found.exception)


@pytest.fixture(scope="module")
def golden(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps for two prompts."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("golden")
    pairs = [("a large red circle on the left, white background", 0), ("a small green star at the top", 1)]
    write_golden(golden_source(open_checkpoint(nano), sampler=PLAN), pairs, folder)
    return folder


def test_golden_cases_hold_calls_of_the_unet(golden: Path, nano: Path, plain: Recipe) -> None:
    found = read_golden(golden)
    case = found.cases[0]
    assert found.index.steps == steps_of(open_checkpoint(nano).config, PLAN)
    assert [call.label for call in case.calls("unet")] == [f"case-000 at timestep {t}" for t in (999, 666, 332)]
    assert [call.label for call in case.calls("text_encoder")] == ["case-000 without a prompt", "case-000"]
    assert [call.label for call in case.calls("vae_decoder")] == ["case-000"]
    empty, text = (call.inputs("text_encoder")["input_ids"] for call in case.calls("text_encoder"))
    assert empty.shape == text.shape == (1, 77)
    assert empty[0, 1] == empty[0, 2] != text[0, 1]
    first = case.calls("unet")[0].inputs("unet")
    assert all(np.array_equal(row, case.values["given.noise"][0]) for row in first["sample"])
    many = plain.sampled(PLAN.steps, PLAN.guidance, PLAN.kind)
    part = rewritten(open_checkpoint(nano), "unet", many)
    assert [spec.shape for spec in part.inputs] == [(2, 8, 8, 8), (1,), (2, 77, 128)]
    assert part.snr_db(case) > 100
    calibration = CalibrationInputs(many, part, golden, 2)
    assert [float(inputs["timestep"][0]) for inputs in calibration] == [999.0, 666.0, 332.0]
    assert len(CalibrationInputs(many, part, golden)) == len(each_call("unet", found.cases)) == 6
    assert len(CalibrationInputs(many, rewritten(open_checkpoint(nano), "text_encoder", many), golden)) == 4


def test_golden_cases_that_do_not_fit_their_steps(golden: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(golden, tmp_path / name))

    changes = {
        "sampler.sample.1": "sampler.sample.2",
        "sampler.timestep.0": "sampler.timestep.1",
        "unet.out_sample.2": "unet.out_sample.3",
        "given.input_ids.0": "given.input_ids",
        "text_encoder.last_hidden_state.1": "text_encoder.last_hidden_state",
    }
    for name, other in changes.items():
        folder = damaged(name)
        arrays = load_file(folder / "case-000.safetensors")
        arrays[other] = arrays.pop(name)
        save_file(arrays, folder / "case-000.safetensors")
        index = json.loads((folder / "index.json").read_text())
        index["cases"][0]["sha256"] = sha256_of(folder / "case-000.safetensors")
        (folder / "index.json").write_text(json.dumps(index))
        with pytest.raises(GoldenError, match=r"do not belong to the index's steps|does not hold the tensors"):
            read_golden(folder)
    folder = damaged("one step")
    edit_json(folder / "index.json", lambda values: values.pop("steps"))
    with pytest.raises(GoldenError, match="do not belong to the index's steps"):
        read_golden(folder)
    folder = damaged("endless")
    edit_json(folder / "index.json", lambda values: values["steps"].update(steps=values["steps"]["steps"] * 1000))
    with pytest.raises(GoldenError, match="not from 1 to 1000"):
        read_golden(folder)


def test_cases_of_other_steps_are_not_taken(golden: Path, nano: Path, plain: Recipe) -> None:
    checkpoint = open_checkpoint(nano)
    assert present_golden(checkpoint, golden, PLAN) == golden
    assert present_golden(checkpoint, None, PLAN) is None
    assert present_golden(checkpoint, None) == nano / "golden"
    with pytest.raises(GoldenError, match=r"3 steps of ddim with guidance 7\.5"):
        present_golden(checkpoint, golden)
    with pytest.raises(GoldenError, match="--steps 3 --sampler ddim --guidance 2 "):
        present_golden(checkpoint, golden, SamplerPlan(3, "ddim", 2.0))
    own = [(case.prompt, case.seed) for case in read_golden(nano / "golden").cases]
    assert planned_cases(plain.sampled(50, None), checkpoint) == own[:4]


def test_an_app_reads_every_step_from_an_artifact(nano: Path) -> None:
    checkpoint = open_checkpoint(nano)
    notes, steps = steps_notes(checkpoint, PLAN), steps_of(checkpoint.config, PLAN)
    assert steps is not None
    read = zip(*(notes[name].split(",") for name in ("timestep", "a", "b")), strict=True)
    assert tuple(Step(float(t), float(a), float(b)) for t, a, b in read) == steps.steps
    assert not {"start", "scale", "noise"} & set(notes)
    assert (notes["sampler"], float(notes["guidance"])) == ("ddim", 7.5)
    assert steps_notes(checkpoint, None) == {}
    for method in METHODS:
        told = steps_notes(checkpoint, SamplerPlan(3, method, 1.0))
        columns = [told[field.name] for field in dataclasses.fields(Step) if field.name in told]
        assert all(len([float(value) for value in column.split(",")]) == 3 for column in columns)


@pytest.mark.seen("negative prompt for a picture", "takes the place of the empty prompt")
def test_a_negative_prompt_is_what_guidance_leads_away_from(nano: Path) -> None:
    torch.set_num_threads(1)
    plan, request = SamplerPlan(2, "ddim", 3.0), ("a large red circle", 0)
    made = [
        pictures_of_checkpoint(nano, [request], sampler=plan, negative=negative)[0]
        for negative in (None, "", "a small blue square")
    ]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
