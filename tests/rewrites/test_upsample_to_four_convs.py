from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from md_export.models.layers import Upsample
from md_export.parity.metrics import compare
from md_export.rewrites.upsample_to_four_convs import FourConvUpsample, upsample_to_four_convs
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, Subject


def upsampler() -> Upsample:
    torch.manual_seed(0)
    return Upsample(6).eval().requires_grad_(False)


@pytest.mark.parametrize("shape", [(1, 6, 5, 7), (2, 6, 4, 4), (1, 6, 1, 1)])
def test_same_map_to_the_borders(step: OneStep, shape: tuple[int, ...]) -> None:
    upsample, x = upsampler(), torch.randn(shape)
    expected, keys = upsample(x).numpy(), list(upsample.state_dict())
    assert upsample_to_four_convs(upsample, step) == 1
    assert compare(upsample(x).numpy(), expected).snr_db >= EXACT_DB
    assert list(upsample.state_dict()) == keys


def test_exchanged_positions_are_seen(step: OneStep) -> None:
    upsample, x = upsampler(), torch.randn(1, 6, 5, 7)
    expected = upsample(x).numpy()
    upsample_to_four_convs(upsample, step)
    upsample.conv.phases = upsample.conv.phases[[0, 2, 1, 3]]  # type: ignore[index]
    assert compare(upsample(x).numpy(), expected).snr_db < EXACT_DB - 60


def test_multiply_adds_are_16_for_36(step: OneStep) -> None:
    upsample, x = upsampler(), torch.randn(1, 6, 5, 7)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            upsample(x)
        return int(counter.get_total_flops())

    before = flops()
    upsample_to_four_convs(upsample, step)
    assert flops() * 36 == before * 16


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_every_upsampler_of_a_component(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("other", component)
    found = sum(isinstance(layer, Upsample) for layer in case.module.modules())
    (record,) = case.rewrite("upsample_to_four_convs")
    assert record.fired == found == sum(isinstance(layer, FourConvUpsample) for layer in case.module.modules()) > 0
    (record,) = case.rewrite("upsample_to_four_convs")
    assert (record.fired, bool(record.note)) == (0, True)
