from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from md_export.models.layers import Upsample
from md_export.models.tiny_autoencoder import DoubleSize
from md_export.rewrites.upsample_by_repeating import count_repeating, upsample_by_repeating
from md_export.spec.sampler import OneStep
from rewrites.forms import Subject


@pytest.mark.parametrize("build", [lambda: Upsample(6), DoubleSize])
@pytest.mark.parametrize("shape", [(1, 6, 5, 7), (2, 6, 1, 3)])
def test_every_bit_stays(step: OneStep, build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = build().eval().requires_grad_(False), torch.randn(shape)
    expected = layer(x)
    assert upsample_by_repeating(layer, step) == 1
    assert torch.equal(layer(x), expected)
    assert not torch.equal(layer(x.flip(-1)), expected)
    assert (upsample_by_repeating(layer, step), count_repeating(layer)) == (0, 1)


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_every_upsampler_of_a_component(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("other", component)
    found = sum(isinstance(layer, Upsample) for layer in case.module.modules())
    (record,) = case.rewrite("upsample_by_repeating")
    assert record.fired == found == count_repeating(case.module) > 0
