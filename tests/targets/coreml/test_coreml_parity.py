"""A saved package computes what torch computes, in every precision; damaged weights are noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export.spec.tensors import Array
from md_export.targets.coreml.target import CoremlTarget

coreml = CoremlTarget()

COMPONENT_NAMES = ("text_encoder", "unet", "vae_decoder")
# Decibels. Random weights are harder on float16 than trained ones: rounding adds up layer by layer,
# with no single layer to blame (decoder 49 dB here, 60 dB trained).
LEAST = {
    ("text_encoder", "fp32"): 110.0,
    ("text_encoder", "fp16"): 55.0,
    ("text_encoder", "int8"): 30.0,
    ("unet", "fp32"): 100.0,
    ("unet", "fp16"): 50.0,
    ("unet", "int8"): 30.0,
    ("vae_decoder", "fp32"): 100.0,
    ("vae_decoder", "fp16"): 45.0,
    ("vae_decoder", "int8"): 25.0,
}
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def snr_db(reference: Array, found: Array) -> float:
    signal, error = reference.astype(np.float64), found.astype(np.float64) - reference.astype(np.float64)
    return float(10 * np.log10((signal**2).sum() / max((error**2).sum(), 1e-300)))


def measure(subject: Any, path: Path) -> float:
    outputs = coreml.load(path).run(subject.job.example)
    (name,) = subject.expected
    assert set(outputs) == {name}
    assert outputs[name].dtype == np.float32
    return snr_db(subject.expected[name], outputs[name])


@pytest.mark.parametrize(("component", "scheme"), LEAST)
def test_a_package_computes_what_torch_computes(
    component: str, scheme: str, subject: Callable[..., Any], package: Callable[..., Path]
) -> None:
    assert measure(subject(component), package(component, scheme)) >= LEAST[component, scheme]


@pytest.mark.parametrize("component", COMPONENT_NAMES)
def test_other_widths_gelu_and_relu_attention_go_through(
    component: str, subject: Callable[..., Any], package: Callable[..., Path]
) -> None:
    assert measure(subject(component, "other"), package(component, "fp16", "other")) >= LEAST[component, "fp16"]


def damaged(path: Path, copy: Path, pattern: bytes) -> Path:
    """A copy of a package with 64 bytes in the middle of its largest weight overwritten."""
    shutil.copytree(path, copy)
    raw = bytearray((copy / WEIGHTS).read_bytes())
    start, count = largest_weight(raw)
    middle = start + count // 2 // 64 * 64
    block = (pattern * 64)[:64] if pattern else bytes(b ^ 0x80 for b in raw[middle : middle + 64])
    raw[middle : middle + 64] = block
    (copy / WEIGHTS).write_bytes(raw)
    return copy


def largest_weight(raw: bytes | bytearray) -> tuple[int, int]:
    """Offset and size of the data of the largest blob."""
    records = [i for i in range(64, len(raw), 64) if raw[i : i + 4] == (0xDEADBEEF).to_bytes(4, "little")]
    spans = [
        (int.from_bytes(raw[i + 16 : i + 24], "little"), int.from_bytes(raw[i + 8 : i + 16], "little")) for i in records
    ]
    return max(spans, key=lambda span: span[1])


@pytest.mark.parametrize(("component", "scheme"), [("vae_decoder", "fp32"), ("unet", "fp16"), ("unet", "int8")])
def test_one_flipped_block_of_weights_is_noticed(
    component: str, scheme: str, subject: Callable[..., Any], package: Callable[..., Path], tmp_path: Path
) -> None:
    whole = package(component, scheme)
    copy = damaged(whole, tmp_path / "flipped.mlpackage", pattern=b"")
    assert measure(subject(component), copy) < measure(subject(component), whole) - 1


@pytest.mark.parametrize(("scheme", "nan"), [("fp32", b"\x00\x00\xc0\x7f"), ("fp16", b"\x00\x7e")])
def test_a_nan_in_the_weights_reaches_the_output(
    scheme: str, nan: bytes, subject: Callable[..., Any], package: Callable[..., Path], tmp_path: Path
) -> None:
    copy = damaged(package("vae_decoder", scheme), tmp_path / "nan.mlpackage", pattern=nan)
    outputs = coreml.load(copy).run(subject("vae_decoder").job.example)
    assert np.isnan(outputs["image"]).any()
