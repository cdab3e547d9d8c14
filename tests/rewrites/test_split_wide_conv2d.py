from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from md_export.checkpoint.architectures import arch_config
from md_export.models.families import COMPONENTS
from md_export.parity.metrics import compare
from md_export.rewrites.split_wide_conv2d import SplitConv2d, count_narrow, parts_of, split_wide_conv2d
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, Subject


def wide(channels: int, **options: int) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, 4, 3, padding=1, **options).eval().requires_grad_(False)  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "parts"), [(910, 1), (911, 2), (960, 2), (1664, 2), (1821, 3)])
def test_as_many_parts_as_it_takes(channels: int, parts: int) -> None:
    assert parts_of(wide(channels)) == parts
    assert parts_of(nn.Conv2d(channels, channels, 3, groups=channels, device="meta")) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_map(step: OneStep, stride: int, bias: bool) -> None:
    conv, x = wide(1821, stride=stride, bias=bias), torch.randn(2, 1821, 5, 7)
    expected, keys = conv(x).numpy(), list(conv.state_dict())
    assert split_wide_conv2d(conv, step) == 1
    assert compare(conv(x).numpy(), expected).snr_db >= EXACT_DB
    assert list(conv.state_dict()) == keys
    # Of every part.
    conv.weight[:, 1820] *= 2
    assert compare(conv(x).numpy(), expected).snr_db < EXACT_DB - 60


def test_nothing_is_wide(step: OneStep) -> None:
    narrow = nn.Sequential(wide(12))
    assert split_wide_conv2d(narrow, step) == 0
    assert count_narrow(narrow) == 1


def test_the_full_unet(step: OneStep) -> None:
    with torch.device("meta"):
        unet = COMPONENTS["unet"].build(arch_config("md"))
    assert split_wide_conv2d(unet, step) == 4
    found = [path for path, layer in unet.named_modules() if isinstance(layer, SplitConv2d)]
    # The second is one of 2×2 and no longer wide after upsample_to_four_convs.
    wide = [f"up_blocks.{level}.resnets.{index}.conv1" for level, index in ((1, 0), (1, 1), (2, 0))]
    assert found == ["up_blocks.0.upsamplers.0.conv", *wide]


def test_a_recipe_may_name_it_for_any_checkpoint(subject: Callable[[str, str], Subject]) -> None:
    (record,) = subject("nano", "unet").rewrite("split_wide_conv2d")
    assert (record.fired, bool(record.note)) == (0, True)
