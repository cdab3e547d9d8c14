from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

from md_export.engine.generate import pictures_of_checkpoint
from md_export.errors import ConfigError
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.sampling.generate import draw_noise
from md_export.models.sampling.sampler import Sampler
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.tokenizers import tokenize, words_cut
from md_export.models.walk import Runners, Steps, Tensors, picture_from, walk
from md_export.spec.sampler import OneStep
from md_export.spec.tensors import Array, Arrays


@pytest.mark.parametrize(
    ("kind", "a", "b"),
    [("epsilon", 14.64881, -14.61464), ("v_prediction", 0.068265, -0.997667), ("sample", 0.0, 1.0)],
)
def test_one_step_coefficients_of_stable_diffusions_schedule(kind: str, a: float, b: float) -> None:
    schedule = ScheduleConfig(prediction_type=kind)
    assert schedule.alpha_cumprod(999) == pytest.approx(0.0046601, abs=1e-7)
    assert schedule.x0_at(schedule.last_timestep) == pytest.approx((a, b), abs=2e-5)


def test_unknown_schedule() -> None:
    with pytest.raises(ConfigError, match="cosine"):
        ScheduleConfig(beta_schedule="cosine")
    with pytest.raises(ConfigError, match="flow"):
        ScheduleConfig(prediction_type="flow")


def test_noise_is_a_function_of_the_seed() -> None:
    assert np.array_equal(draw_noise(3, (1, 8, 8, 8)), draw_noise(3, (1, 8, 8, 8)))
    assert not np.array_equal(draw_noise(3, (1, 8, 8, 8)), draw_noise(4, (1, 8, 8, 8)))


def test_latent_is_x0_over_the_scaling_factor() -> None:
    step = OneStep(999, 2.0, -3.0, 0.5, "epsilon")
    noise = np.ones((1, 1), np.float32)
    values: Tensors = {"given.noise": noise}
    Steps(MOBILE_DIFFUSION, (MOBILE_DIFFUSION["unet"],), Sampler(step)).take(lambda *_: [], [values])
    assert "sampler.latent" not in values
    values |= {"text_encoder.last_hidden_state": noise}
    Steps(MOBILE_DIFFUSION, (MOBILE_DIFFUSION["unet"],), Sampler(step)).take(
        lambda *_: [{"out_sample": noise / 4}], [values]
    )
    assert values["sampler.latent"].dtype == np.float32
    assert values["sampler.latent"].item() == pytest.approx((2.0 - 0.75) / 0.5)


def test_picture_clamps_but_keeps_nan() -> None:
    image = np.zeros((1, 3, 1, 2), np.float32)
    image[0, 0] = [[-5.0, 5.0]]
    image[0, 1, 0, 0] = np.nan
    picture = picture_from(image)
    assert picture.shape == (1, 2, 3)
    assert picture[0, 0, 0] == 0.0
    assert picture[0, 1, 0] == 1.0
    assert np.isnan(picture[0, 0, 1])
    assert picture[0, 1, 2] == 0.5


class Fake:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self.seen: dict[str, Array] = {}

    def run(self, inputs: Arrays) -> dict[str, Array]:
        self.seen = dict(inputs)
        return {self.name: np.full(self.shape, 0.5, np.float32)}


def test_generate_wires_the_components() -> None:
    text = Fake("last_hidden_state", (1, 77, 4))
    unet, decoder = Fake("out_sample", (1, 8, 2, 2)), Fake("image", (1, 3, 16, 16))
    noise = draw_noise(0, (1, 8, 2, 2))
    step = OneStep(999, 0.0, 1.0, 0.25, "sample")
    backend = Runners({"text_encoder": text, "unet": unet, "vae_decoder": decoder})
    begun = {"given.input_ids": np.zeros((1, 77), np.int32), "given.noise": noise}
    (values,) = walk(MOBILE_DIFFUSION, MOBILE_DIFFUSION.required, backend, [begun], Sampler(step))
    assert unet.seen["timestep"].tolist() == [999.0]
    assert np.array_equal(unet.seen["sample"], noise)
    assert unet.seen["encoder_hidden_states"].shape == (1, 77, 4)
    assert np.all(decoder.seen["latent"] == 2.0)
    assert np.all(values["made.picture"] == 0.75)


@pytest.mark.seen("prompt that is longer than the window", "a line names the words that are cut")
def test_what_of_a_prompt_has_no_place(nano: Path) -> None:
    tokenizer = nano / "tokenizer"
    assert words_cut(tokenizer, "a red circle", 5) == ""
    assert words_cut(tokenizer, "a red circle above a blue square", 5) == "above a blue square"
    told: list[str] = []
    pictures_of_checkpoint(nano, [("a red circle, " * 40, 0)], tell=told.append)
    (line,) = told
    assert line.startswith("the prompt is longer than 77 tokens; this is left out: '")
    # Four tokens each, and 75 places between the first and the last: the nineteenth circle is the last whole one.
    assert line.count("red circle") == 40 - 19


@pytest.mark.seen("textual inversion with several vectors", "the prompt is expanded as diffusers does")
@pytest.mark.parametrize("prompt", ["a <cat> on a mat", "<cat>", "<cat>, <dog> and <cat>", "a cat", "<bird>"])
def test_every_vector_of_a_textual_inversion_is_used(nano: Path, tmp_path: Path, prompt: str) -> None:
    """As diffusers expands the prompt: a token for each vector, of which only the first is written."""
    plain: Any = CLIPTokenizer.from_pretrained(str(nano / "tokenizer"))
    plain.add_tokens(["<cat>", "<cat>_1", "<cat>_2", "<dog>", "<bird>_1"])
    plain.save_pretrained(tmp_path)
    expanded = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, plain)
    wanted = plain(expanded, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert tokenize(tmp_path, prompt, 77)[0].tolist() == wanted
    unexpanded = plain(prompt, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert (wanted == unexpanded) is ("<cat>" not in prompt)
