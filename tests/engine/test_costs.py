"""Predictions follow the measurements that the docs hold, and what was measured here goes before them."""

from __future__ import annotations

from pathlib import Path

import pytest

from md_export.engine.costs import Measured, artifact_cost, cases_cost, export_cost
from md_export.engine.plan import Cost
from md_export.spec.scheme import QuantScheme
from md_export.targets import TARGETS

FLOAT16 = QuantScheme("float16", "float16")
# Bytes of MD's weights in float32, and docs/benchmarks.md: GB and seconds of the worker that makes float16.
UNET, TEXT, DECODER = 1_546_000_000, 492_000_000, 39_000_000


@pytest.mark.parametrize(
    ("target", "component", "weights", "gigabytes", "seconds"),
    [
        ("coreml", "unet", UNET, 3.3, 131),
        ("coreml", "text_encoder", TEXT, 2.4, 28),
        ("coreml", "vae_decoder", DECODER, 1.15, 20),
        ("tflite", "unet", UNET, 5.93, 187),
        ("tflite", "text_encoder", TEXT, 3.08, 43),
        ("tflite", "vae_decoder", DECODER, 1.19, 36),
        ("onnx", "unet", UNET, 2.86, 45),
        ("onnx", "text_encoder", TEXT, 1.40, 22),
        ("onnx", "vae_decoder", DECODER, 1.12, 18),
    ],
)
def test_full_size_predictions_cover_what_was_measured(
    target: str, component: str, weights: int, gigabytes: float, seconds: float
) -> None:
    cost = artifact_cost(target, component, FLOAT16, weights)
    assert gigabytes <= cost.peak_bytes / 1e9 <= 1.1 * gigabytes
    assert seconds * 0.9 <= cost.seconds <= 1.4 * seconds


@pytest.mark.parametrize(
    ("component", "weights", "gigabytes"),
    [("text_encoder", TEXT, 2.6), ("unet", UNET, 4.05), ("vae_decoder", DECODER, 4.2)],
)
def test_static_ranges_of_onnx_cost_what_was_measured(component: str, weights: int, gigabytes: float) -> None:
    cost = artifact_cost("onnx", component, QuantScheme("int8", "int8_static"), weights)
    assert gigabytes <= cost.peak_bytes / 1e9 <= 1.1 * gigabytes
    assert cost.seconds > 2 * artifact_cost("onnx", component, FLOAT16, weights).seconds


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_line(target: str) -> None:
    for component in ("text_encoder", "unet", "vae_decoder"):
        small, large = (artifact_cost(target, component, FLOAT16, size) for size in (10**6, 10**9))
        assert small.peak_bytes < large.peak_bytes
        assert small.seconds < large.seconds
    assert export_cost(target, 10**9, 4).seconds < export_cost(target, 10**9, 16).seconds


def test_palettes_and_calibration_take_longer() -> None:
    plain = artifact_cost("coreml", "unet", FLOAT16, UNET).seconds
    for scheme in (QuantScheme("palette4", "float16", granularity="tensor"), QuantScheme("int8", "int8_static")):
        assert artifact_cost("coreml", "unet", scheme, UNET).seconds > 1.5 * plain


def test_cases_that_are_only_copied_are_cheap() -> None:
    assert cases_cost(UNET, 0).peak_bytes < cases_cost(UNET, 1).peak_bytes / 5


def test_what_was_measured_goes_before_what_was_predicted(tmp_path: Path) -> None:
    measured, predicted = Measured(tmp_path), Cost(100, 1.0)
    assert measured.cost("a", predicted) == predicted
    measured.add("a", Cost(1000, 7.0))
    assert Measured(tmp_path).cost("a", predicted) == Cost(1100, 7.0)
    assert measured.cost("b", predicted) == predicted
    (tmp_path / "a.json").write_text("[")
    assert measured.cost("a", predicted) == predicted
