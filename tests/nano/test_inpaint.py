"""The in-painting nano checkpoint: what is hidden comes out as the caption says, and the rest stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from md_export.checkpoint import open_checkpoint
from md_export.engine.generate import pictures_of_checkpoint
from md_export.models.sampling.pictures import Given
from training.detector import judge
from training.drawing import draw
from training.encoder import FOLDER as ENCODER
from training.encoder import constructed, pictures_of, scores
from training.hidden import hiding, touched
from training.inpaint import FOLDER, Task, held_out_tasks, looks
from training.latents import SCALING_FACTOR
from training.lora import stored_encoder
from training.scenes import is_held_out

TASKS = 8
# Least of what is kept, in dB, over the pictures of a test; the decoder itself reaches 44.
KEPT_DB = 30.0


def painted(tasks: list[Task], checkpoint: Path) -> tuple[list[NDArray[np.float32]], list[Given]]:
    images = pictures_of([task.given for task in tasks]).numpy()
    given = [Given(image[None], task.mask[None].numpy()) for image, task in zip(images, tasks, strict=True)]
    requests = [(task.prompt, seed) for seed, task in enumerate(tasks)]
    return pictures_of_checkpoint(checkpoint, requests, given=given), given


def psnr(made: NDArray[np.float32], wanted: NDArray[np.float32], where: NDArray[np.float32]) -> float:
    return float(-10 * np.log10(((made - wanted) ** 2)[where[0, 0] > 0].mean()))


def test_tasks_are_held_out_and_differ_where_they_should() -> None:
    for misleading in (False, True):
        for task in held_out_tasks(40, misleading):
            kept = 1 - task.hidden
            assert is_held_out(task.wanted)
            assert looks(task.given, task.hidden) != looks(task.wanted, task.hidden) == looks(task.said, task.hidden)
            assert looks(task.given, kept) == looks(task.wanted, kept)
            assert (looks(task.said, kept) != looks(task.wanted, kept)) == misleading
            assert task.given.background == task.wanted.background


def test_what_is_hidden_covers_an_object_and_nothing_of_the_other() -> None:
    left = hiding("left", (8, 8))
    assert left[0, 32, 16] == 1
    assert not left[0, :, 33:].any()
    assert touched(hiding("left")[None])[0, 0].sum() == 16


@pytest.mark.parametrize("misleading", [False, True])
def test_hidden_objects_come_as_said_and_the_rest_stays(misleading: bool) -> None:
    tasks = held_out_tasks(TASKS, misleading, seed=9)
    pictures, given = painted(tasks, FOLDER)
    right = [judge(picture, task.wanted).right for picture, task in zip(pictures, tasks, strict=True)]
    assert np.mean(right) >= 0.9
    wanted = draw([task.wanted for task in tasks])
    kept = [psnr(made, want, 1 - one.mask) for made, want, one in zip(pictures, wanted, given, strict=True)]
    assert np.mean(kept) >= KEPT_DB
    # What was there before is gone.
    assert not any(judge(picture, task.given).right for picture, task in zip(pictures, tasks, strict=True))


def test_a_unet_that_cannot_in_paint_believes_a_misleading_caption() -> None:
    """The negative control: blended latents leave a seam where another background is said."""
    tasks = held_out_tasks(4 * TASKS, misleading=True, seed=9)
    tasks = [task for task in tasks if task.said.background != task.wanted.background][: TASKS // 2]
    wanted = draw([task.wanted for task in tasks])
    inside = {}
    for name, checkpoint in (("inpaint", FOLDER), ("blended", ENCODER)):
        pictures, given = painted(tasks, checkpoint)
        figures = [psnr(made, want, one.mask) for made, want, one in zip(pictures, wanted, given, strict=True)]
        inside[name] = float(np.mean(figures))
    assert inside["inpaint"] > inside["blended"] + 10


@pytest.mark.slow
def test_the_encoder_gives_what_the_decoder_was_trained_on() -> None:
    pca = stored_encoder()
    module = open_checkpoint(ENCODER).module("vae_encoder")
    found = scores(module, pca, 20)  # type: ignore[arg-type]
    assert min(found.values()) > 50
    torch.manual_seed(0)
    assert scores(constructed(pca), pca, 20)["whole"] > 25
    with torch.no_grad():
        assert (
            module(torch.zeros(1, 3, 64, 64)).mul(SCALING_FACTOR).sub(pca(torch.zeros(1, 3, 64, 64))).abs().max() < 0.1
        )


def test_both_siblings_have_the_same_encoder() -> None:
    first, second = (folder / "vae" / "diffusion_pytorch_model.safetensors" for folder in (ENCODER, FOLDER))
    assert first.read_bytes() == second.read_bytes()
