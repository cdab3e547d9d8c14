"""What is planted in one op is flagged by the rule for it, what is healthy by none; norms at the decoder's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from half_arithmetic import mean_in_float16
from md_export.diagnose.lint import FLOAT16_BUDGET_DB
from md_export.parity.metrics import compare
from md_export.rewrites.staged_group_norm import staged_group_norm
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array
from md_export.targets.lint.judge import judged
from md_export.targets.lint.report import Float16Bound
from md_export.targets.lint.rules import rules_of
from md_export.targets.tflite.half.bounds import LOST_DB, bound_of, emulated_db
from one_op import MODULE, OneOp, conv, noise
from planted import STEP

# A feature map of the decoder at full size, before the last convolution.
SIDE, CHANNELS = 512, 4


def judge(op: OneOp, folder: Path) -> Float16Bound:
    (found,) = judged([bound_of(op.values(folder))], rules_of("tflite").hazard, FLOAT16_BUDGET_DB)
    return found


def mean(x: Array, *axes: int) -> OneOp:
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    return OneOp("MEAN", (x, np.array(axes, np.int32)), shape, options={"keepDims": True})


def square(x: Array) -> OneOp:
    return OneOp("MUL", (x, x), x.shape, (0, 1))


def softmax(offset: float) -> OneOp:
    return OneOp("SOFTMAX", (noise(1, 8, 77) + np.float32(offset),), (1, 8, 77), options={"beta": 1.0})


X, WEIGHT, SHAPE = noise(1, 6, 6, 64), noise(8, 3, 3, 64, seed=1), (1, 6, 6, 8)
MAP = np.abs(noise(1, SIDE, SIDE, CHANNELS))
PLANTED = {
    "a convolution with large weights": (conv(X, WEIGHT * 1e4, SHAPE), ("overflow", "sum-overflow"), "power of two"),
    "terms that cancel": (
        conv(np.concatenate([X, -X], 3) * 100, np.concatenate([WEIGHT, WEIGHT * 1.001], 3), SHAPE),
        ("sum-overflow",),
        "FP16_WITH_FP32_ACCUM",
    ),
    "a convolution of many terms": (conv(X, WEIGHT, SHAPE), ("loses-by-default",), "FP16_WITH_FP32_ACCUM"),
    "a norm's square of large values": (square(np.full((1, 4), 300, np.float32)), ("overflow",), "eps"),
    "a norm's square of small values": (square(noise(1, 40, scale=1e-4)), ("loses", "below-normal"), "float32"),
    "a mean over a whole map": (mean(MAP, 1, 2), ("long-sum",), "staged_group_norm"),
    "logits of thousands": (softmax(1000.0), ("loses",), "logits"),
    "an angle": (OneOp("SIN", (np.linspace(0, 999, 50, dtype=np.float32),), (50,)), ("loses",), "fold_timestep"),
}
HEALTHY = {
    "a convolution of few terms": conv(X[..., :4], WEIGHT[..., :4], SHAPE),
    "a square": square(noise(1, 40)),
    "a mean over a row": mean(MAP, 2),
    "logits": softmax(3.0),
    "an angle": OneOp("SIN", (np.linspace(0, 1, 50, dtype=np.float32),), (50,)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_flagged(tmp_path: Path, name: str) -> None:
    op, rules, advice = PLANTED[name]
    bound = judge(op, tmp_path)
    assert bound.rules[: len(rules)] == rules
    assert advice in bound.advice
    assert bound.module == MODULE


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_healthy_is_not(tmp_path: Path, name: str) -> None:
    assert judge(HEALTHY[name], tmp_path).rules == ()


def test_every_rule_is_planted() -> None:
    assert {rule for _, rules, _ in PLANTED.values() for rule in rules} == {
        rule.id for rule in rules_of("tflite").hazard
    }


def test_the_budget_is_the_float16_recipes() -> None:
    tolerances = load_recipe(builtin_recipe("tflite", "fp16")).tolerances
    assert {tolerance.snr_db for tolerance in tolerances.values()} == {FLOAT16_BUDGET_DB}


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 60, 75), (1e4, LOST_DB, LOST_DB), (1e-4, 10, 50)])
def test_a_file_is_emulated_as_a_whole(tmp_path: Path, scale: float, low: float, high: float) -> None:
    """What overflows and what is too small shows at its outputs."""
    op = conv(X * np.float32(scale), WEIGHT * np.float32(scale), SHAPE)
    bare = OneOp(op.kind, (*op.operands[:2], np.zeros(8, np.float32)), op.shape, options=op.options)
    assert low <= emulated_db(bare.write(tmp_path / "x.tflite"), [bare.inputs]) <= high


def snr_db(made: Array, wanted: Array) -> float:
    return compare(made.astype(np.float64), wanted.astype(np.float64)).snr_db


def test_means_of_a_full_size_map_by_stages_in_float16_sums() -> None:
    """Were an engine to add in float16: a whole map's sum stands still at 2048, where adding 1 changes nothing."""
    squares = (np.random.default_rng(0).standard_normal((SIDE, SIDE, CHANNELS)) ** 2).astype(np.float32)
    wanted = squares.astype(np.float64).mean((0, 1))
    half = squares.astype(np.float16)
    with np.errstate(over="ignore"):
        whole = mean_in_float16(half.reshape(-1, CHANNELS).T)
    assert snr_db(whole, wanted) < 1
    rows = mean_in_float16(np.moveaxis(half, 1, -1))
    assert snr_db(mean_in_float16(rows.T), wanted) > 40


@pytest.mark.parametrize(("spread", "survives"), [(30.0, True), (90.0, False)])
def test_a_staged_norm_of_full_size_maps_in_float16(spread: float, survives: bool) -> None:
    """Values up to 256 from their mean have a square that float16 holds; beyond, its output is NaN."""
    norm = nn.GroupNorm(2, CHANNELS, eps=1e-6).requires_grad_(False)
    x = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * spread + 40
    wanted = norm(x).numpy()
    staged_group_norm(norm, STEP)
    made = norm.half()(x.half()).float().numpy()
    assert bool(np.isfinite(made).any()) == survives
    if survives:
        assert snr_db(made, wanted) > 50
