"""LoRAs beside the weights: the same function as fused ones in every recipe's form, and weights that stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.errors import RewriteError
from md_export.parity.metrics import compare
from md_export.parity.rewritten_module import Rewritten, rewritten
from md_export.rewrites.equalize import equalize_both
from md_export.rewrites.lora_branches import factors_of, put_beside
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

OUTLINE = Path(__file__).parents[2] / "golden" / "nano" / "loras" / "outline.safetensors"
RECIPES = (("onnx", "fp32"), ("onnx", "w8a16"), ("coreml", "w8a8"), ("tflite", "int8"), ("coreai", "fp16"))


@pytest.fixture
def styled(nano: Path) -> Iterator[Checkpoint]:
    with adapted(nano, [str(OUTLINE)]) as folder:
        yield open_checkpoint(folder)


def outputs(part: Rewritten, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    given = {
        spec.name: np.full(spec.shape, 999, np.float32)
        if len(spec.shape) == 1
        else random.normal(size=spec.shape).astype(np.float32)
        for spec in part.inputs
    }
    return part.run(given)


def recipe_of(target: str, precision: str) -> Recipe:
    return load_recipe(builtin_recipe(target, precision))


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), RECIPES)
def test_beside_computes_what_fused_does_and_keeps_the_weights(
    nano: Path, styled: Checkpoint, target: str, precision: str
) -> None:
    recipe = recipe_of(target, precision)
    base, fused = rewritten(open_checkpoint(nano), "unet", recipe), rewritten(styled, "unet", recipe)
    beside = rewritten(styled, "unet", replace(recipe, unfused=True))
    assert compare(outputs(beside), outputs(fused)).snr_db > 100
    assert compare(outputs(base), outputs(fused)).snr_db < 20
    own = dict(beside.module.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in base.module.named_parameters())
    added = list(own.keys() - dict(base.module.named_parameters()).keys())
    assert added
    assert all(".lora." in name for name in added)


def test_ranks_are_those_of_the_file(nano: Path, styled: Checkpoint) -> None:
    found = factors_of(open_checkpoint(nano).module("unet"), styled.module("unet"))
    assert {factors.rank for factors in found.values()} == {3}


def test_components_without_the_lora_stay(styled: Checkpoint) -> None:
    part = rewritten(styled, "vae_decoder", replace(recipe_of("onnx", "fp32"), unfused=True))
    assert not [path for path, _ in part.module.named_modules() if path.endswith(".lora")]


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)


@pytest.mark.parametrize(
    ("name", "words"), [("norm.weight", "norm.weight"), ("inner.weight", r"inner.weight \(a difference of rank 32\)")]
)
def test_what_a_branch_cannot_add_is_named(name: str, words: str) -> None:
    base, changed = Norm(), Norm()
    changed.load_state_dict(base.state_dict())
    with torch.no_grad():
        changed.get_parameter(name).add_(torch.randn_like(changed.get_parameter(name)))
    with pytest.raises(RewriteError, match=words):
        factors_of(base, changed)


def test_a_bias_alone() -> None:
    base, changed = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    changed.load_state_dict(base.state_dict())
    with torch.no_grad():
        changed.get_parameter("0.bias").add_(1.0)
    assert put_beside(base, changed) == 1
    x = torch.randn(2, 4)
    assert torch.allclose(base(x), changed(x), atol=1e-6)


def test_equalize_takes_the_scales_of_the_first(nano: Path) -> None:
    base, other = (open_checkpoint(nano).module("unet") for _ in range(2))
    rows = [name for name, _ in base.named_parameters() if name.endswith("to_v.weight")]
    with torch.no_grad():
        for name in rows:
            base.get_parameter(name)[:2] *= 64.0
    before = {name: (base.get_parameter(name).clone(), other.get_parameter(name).clone()) for name in rows}
    assert equalize_both(base, other) > 0
    ratios = {name: (base.get_parameter(name) / before[name][0]).nanmedian(1).values for name in rows}
    assert any(bool((ratio != 1).any()) for ratio in ratios.values())
    for name, ratio in ratios.items():
        assert torch.equal(other.get_parameter(name), before[name][1] * ratio[:, None])
