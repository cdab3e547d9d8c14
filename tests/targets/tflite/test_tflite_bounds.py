"""Float16 errors of one op: what emulated arithmetic does stays within what was bounded, and a wrong bound shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from half_arithmetic import Arithmetic, Half, Real, in_blocks, in_float16, mean_in_float16, patches
from md_export.spec.tensors import Array
from md_export.targets.tflite.half import bounds
from md_export.targets.tflite.half.activations import OpValues
from md_export.targets.tflite.half.bounds import Precision, errors_of
from md_export.targets.tflite.half.terms import Terms, terms_of
from one_op import SAME, VALID, OneOp, conv, noise

ARITHMETIC: list[tuple[Precision, Arithmetic]] = [("float16_sums", in_float16), ("float32_sums", in_blocks)]


def found(op: OneOp, folder: Path) -> tuple[OpValues, Terms]:
    values = op.values(folder)
    terms = terms_of(values)
    assert terms is not None
    return values, terms


DEPTHWISE = {"padding": SAME, "strideH": 2, "strideW": 2, "depthMultiplier": 1, "dilationHFactor": 1} | {
    "dilationWFactor": 1
}
TRANSPOSED = {"padding": SAME, "strideH": 2, "strideW": 2}
SUMS = {
    "conv": conv(noise(1, 6, 7, 5), noise(4, 3, 3, 5, seed=1), (1, 6, 7, 4)),
    "conv, stride 2": conv(noise(1, 6, 7, 5), noise(4, 3, 3, 5, seed=1), (1, 3, 4, 4), stride=2),
    "conv, unpadded": conv(noise(1, 6, 7, 5), noise(4, 3, 3, 5, seed=1), (1, 4, 5, 4), padding=VALID),
    "depthwise": OneOp(
        "DEPTHWISE_CONV_2D", (noise(1, 6, 7, 5), noise(1, 3, 3, 5, seed=1), noise(5)), (1, 3, 4, 5), options=DEPTHWISE
    ),
    "transposed": OneOp(
        "TRANSPOSE_CONV",
        (np.array([1, 12, 14, 4], np.int32), noise(4, 3, 3, 5, seed=1), noise(1, 6, 7, 5)),
        (1, 12, 14, 4),
        (2,),
        TRANSPOSED,
    ),
    "linear": OneOp("FULLY_CONNECTED", (noise(3, 20), noise(6, 20, seed=1), noise(6)), (3, 6)),
    "matrices": OneOp(
        "BATCH_MATMUL", (noise(2, 3, 20), noise(2, 6, 20, seed=1)), (2, 3, 6), (0, 1), {"adjX": False, "adjY": True}
    ),
    "mean": OneOp("MEAN", (noise(1, 4, 5, 3), np.array([1], np.int32)), (1, 1, 5, 3), options={"keepDims": True}),
    "sum": OneOp("SUM", (noise(1, 4, 5, 3), np.array([1, 2], np.int32)), (1, 3), options={"keepDims": False}),
}


def positive(op: OneOp) -> OneOp:
    return dataclasses.replace(op, operands=tuple(None if x is None else np.abs(x) for x in op.operands))


@pytest.mark.parametrize("name", SUMS)
def test_the_terms_are_those_that_the_runtime_adds(tmp_path: Path, name: str) -> None:
    """Of positive numbers the sum of magnitudes is the sum itself; of others it is more."""
    _, terms = found(positive(SUMS[name]), tmp_path)
    torch.testing.assert_close(terms.sizes, terms.values, rtol=1e-5, atol=1e-5)
    values, mixed = found(SUMS[name], tmp_path)
    torch.testing.assert_close(mixed.sizes, terms.sizes)
    assert (mixed.sizes > mixed.values.abs() * 1.01).float().mean() > 0.5
    assert mixed.values.shape == values.output.shape


def test_terms_are_counted(tmp_path: Path) -> None:
    counts = {name: found(op, tmp_path)[1].count for name, op in SUMS.items()}
    assert counts == {
        "conv": 46,
        "conv, stride 2": 46,
        "conv, unpadded": 46,
        "depthwise": 10,
        "transposed": 20,
        "linear": 21,
        "matrices": 20,
        "mean": 4,
        "sum": 20,
    }


def test_a_weight_of_zero_adds_no_term(tmp_path: Path) -> None:
    weight = noise(6, 20)
    weight[:, 4:] = 0
    op = dataclasses.replace(SUMS["linear"], operands=(noise(3, 20), weight, None))
    assert found(op, tmp_path)[1].count == 4


def error(made: Half, terms: Terms) -> Real:
    wanted: Real = terms.values.double().numpy().ravel()
    return np.abs(made.astype(np.float64).ravel() - wanted)


def violated(made: Half, terms: Terms, precision: Precision) -> float:
    """The share of outputs that are off by more than the bound."""
    return float((error(made, terms) > errors_of(terms, precision).worst.numpy().ravel()).mean())


@pytest.mark.parametrize(("precision", "arithmetic"), ARITHMETIC)
def test_emulated_convolutions_stay_within_their_bounds(
    tmp_path: Path, precision: Precision, arithmetic: Arithmetic
) -> None:
    """A bound for fewer terms than there are is broken; what is expected is what happens."""
    values, terms = found(conv(noise(1, 6, 6, 64), noise(32, 3, 3, 64, seed=1), (1, 6, 6, 32)), tmp_path)
    made, figures = arithmetic(*patches(values, 1, (1, 1, 1, 1))), errors_of(terms, precision)
    assert violated(made, terms, precision) == 0
    wrong = dataclasses.replace(terms, count=1, sizes=terms.values.abs(), squares=terms.values.square())
    assert violated(made, wrong, precision) > 0.1
    measured = float(np.sqrt((error(made, terms) ** 2).mean()))
    assert 0.5 < measured / float(figures.square.mean().sqrt()) < 1.3
    assert (error(made, terms) <= figures.probable.numpy().ravel()).mean() > 0.99


@pytest.mark.parametrize(("precision", "arithmetic"), ARITHMETIC)
def test_numbers_too_small_for_float16s_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, arithmetic: Arithmetic
) -> None:
    """Products of about 1e-8, most of which are lost."""
    op = conv(noise(1, 6, 6, 64, scale=1e-4), noise(32, 1, 1, 64, seed=1, scale=1e-4), (1, 6, 6, 32))
    values, terms = found(dataclasses.replace(op, operands=(*op.operands[:2], np.zeros(32, np.float32))), tmp_path)
    made = arithmetic(*patches(values, 1, (0, 0, 0, 0)))
    assert violated(made, terms, precision) == 0
    monkeypatch.setattr(bounds, "TINY", 0.0)
    assert violated(made, terms, precision) > 0.5


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_an_emulated_mean_stays_within_its_bound(tmp_path: Path, offset: float) -> None:
    x = noise(1, 512, 1, 64) + np.float32(offset)
    op = OneOp("MEAN", (x, np.array([1], np.int32)), (1, 1, 1, 64), options={"keepDims": True})
    _, terms = found(op, tmp_path)
    made = mean_in_float16(np.moveaxis(x, 1, -1)[0, 0].astype(np.float16))
    assert violated(made, terms, "float16_sums") == 0
    assert violated(made, terms, "float32_sums") > 0
    once = x.astype(np.float16).astype(np.float32).mean(1).astype(np.float16)
    assert violated(once, terms, "float32_sums") == 0


@pytest.mark.parametrize("scale", [0.1, 10.0, 300.0])
def test_an_emulated_softmax_stays_within_its_bound(tmp_path: Path, scale: float) -> None:
    logits = noise(1, 8, 77, scale=scale)
    _, terms = found(OneOp("SOFTMAX", (logits,), (1, 8, 77), options={"beta": 1.0}), tmp_path)
    rounded = torch.from_numpy(logits.astype(np.float16).astype(np.float64))
    made = rounded.softmax(-1).to(torch.float16).numpy()
    assert violated(made, terms, "float32_sums") == 0
    expected = float(errors_of(terms, "float32_sums").square.sum())
    assert 0.03 < (error(made, terms) ** 2).sum() / expected < 3
    only_stored = dataclasses.replace(terms, reads=None, operands=0)
    assert (violated(made, only_stored, "float32_sums") > 0) == (scale > 1)


@pytest.mark.parametrize(
    ("kind", "apply", "x"),
    [
        ("RSQRT", torch.rsqrt, np.geomspace(1e-6, 1e4, 300)),
        ("EXP", torch.exp, np.linspace(-20, 11, 300)),
        ("LOGISTIC", torch.sigmoid, np.linspace(-12, 12, 300)),
        ("SIN", torch.sin, np.linspace(0, 999, 300)),
        ("COS", torch.cos, np.linspace(0, 999, 300)),
    ],
)
def test_functions_of_rounded_operands_stay_within_their_bounds(
    tmp_path: Path, kind: str, apply: torch.nn.Module, x: Array
) -> None:
    given = x.astype(np.float32)
    _, terms = found(OneOp(kind, (given,), given.shape), tmp_path)
    made = apply(torch.from_numpy(given.astype(np.float16).astype(np.float64))).to(torch.float16).numpy()
    assert violated(made, terms, "float16_sums") == 0
    off = error(made, terms) ** 2
    assert 0.1 < off.sum() / float(errors_of(terms, "float16_sums").square.sum()) < 3


def test_sums_and_products_of_two(tmp_path: Path) -> None:
    """What nearly cancels loses digits; a square of small numbers loses them too."""
    left, right = noise(1, 500), noise(1, 500, seed=1)
    near = left * np.float32(1.001)
    cases = [("ADD", left, right), ("SUB", near, left), ("MUL", left, right), ("MUL", left * 1e-3, right * 1e-3)]
    for kind, one, other in cases:
        one, other = one.astype(np.float32), other.astype(np.float32)
        _, terms = found(OneOp(kind, (one, other), one.shape, (0, 1)), tmp_path)
        halves = one.astype(np.float16), other.astype(np.float16)
        made = {"ADD": halves[0] + halves[1], "SUB": halves[0] - halves[1], "MUL": halves[0] * halves[1]}[kind]
        assert violated(made, terms, "float16_sums") == 0
        ratio = (error(made, terms) ** 2).sum() / float(errors_of(terms, "float16_sums").square.sum())
        assert 0.1 < ratio < 3, kind
