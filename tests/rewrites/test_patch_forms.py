"""Rewrites of DiT, PixArt and T5 leave the function alone, also for the batch of guidance and on the GPU engine."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.tflite.gpu.engine import execute_on_gpu
from models.patch_cases import CASES, Case, db, pixart
from rewrites.diffusers_models import STEP
from rewrites.forms import EXACT_DB
from rewrites.tflite_pieces import SCHEMES, target

FORMS = {
    "tflite": load_recipe(builtin_recipe("tflite", "fp16")).rewrites,
    "coreml": load_recipe(builtin_recipe("coreml", "fp16-steps")).rewrites,
    "split": ("linear_to_conv2d", "split_attention_heads"),
}


def rewritten(case: Case, form: str) -> tuple[Any, dict[str, int]]:
    ours = case.ours()
    component = "text_encoder" if len(case.given) == 2 else "transformer"
    records = apply_rewrites(FORMS[form], component, ours, STEP, Consent())
    return ours, {record.name: record.fired for record in records}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CASES)
def test_same_function(name: str, form: str) -> None:
    case = CASES[name]()
    ours, _ = rewritten(case, form)
    assert db(ours(*case.given), case.wanted) > EXACT_DB
    weights = [layer for layer in ours.modules() if isinstance(layer, nn.Conv2d)]
    weights[len(weights) // 2].weight.mul_(1.01)
    assert db(ours(*case.given), case.wanted) < EXACT_DB - 20


@pytest.mark.parametrize("form", FORMS)
def test_same_function_without_guidance(form: str) -> None:
    case = pixart()
    ours, _ = rewritten(case, form)
    given = [value if value.ndim == 1 else value[1:] for value in case.given]
    assert db(ours(*given), case.wanted[1:]) > EXACT_DB
    given[3] = torch.ones_like(given[3])
    assert db(ours(*given), case.wanted[1:]) < EXACT_DB - 40, "the mask was dropped"


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        # Of two blocks four projections and two layers of the feed-forward each, and the last.
        ("dit", {"tokens_to_maps": 13, "rank_4_attention": 2, "vector_linear_to_conv2d": 7, "fold_attention_scale": 2}),
        # The same with cross-attention, and two layers for captions.
        (
            "pixart",
            {"tokens_to_maps": 23, "rank_4_attention": 4, "vector_linear_to_conv2d": 3, "fold_attention_scale": 4},
        ),
        # Of three blocks four projections and three layers of the feed-forward each; no attention has a scale.
        ("t5", {"tokens_to_maps": 21, "rank_4_attention": 3, "fold_attention_scale": 0}),
    ],
)
def test_every_layer_is_reached(name: str, layers: dict[str, int]) -> None:
    case = CASES[name]()
    before = copy.deepcopy(case.ours()).state_dict()
    ours, fired = rewritten(case, "tflite")
    assert fired == {**layers, "fold_norm_affine": 0}
    assert list(ours.state_dict()) == list(before), "paths are the checkpoint's"


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_driver")
def test_guided_batch_with_masks_is_resident_on_the_gpu_engine(tmp_path: Path) -> None:
    """Of the prompt and of no prompt each has a mask of its own."""
    case = pixart()
    ours, _ = rewritten(case, "tflite")
    names = ("sample", "timestep", "encoder_hidden_states", "encoder_attention_mask")
    arrays = {name: value.numpy() for name, value in zip(names, case.given, strict=True)}
    inputs = tuple(TensorSpec(name, array.shape, array.dtype.name) for name, array in arrays.items())
    output = TensorSpec("out", (2, 4, 8, 8), "float32")
    job = LoweringJob("transformer", ours, inputs, (output,), arrays, SCHEMES["fp16"], (arrays,), tmp_path)
    target.lower(job).quantize(job).save(tmp_path / "x.tflite")
    run = execute_on_gpu(tmp_path / "x.tflite", [arrays], limit_s=120)
    assert run.failure is None
    assert run.resident
    assert db(torch.from_numpy(run.outputs[0]["out"]), case.wanted) > 55
