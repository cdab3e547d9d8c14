from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from md_export.errors import RewriteError
from md_export.models.layers import Attention, Gelu, Relu, Softmax
from md_export.parity.metrics import compare
from md_export.rewrites.linear_to_conv2d import linear_to_conv2d
from md_export.rewrites.split_attention_heads import split_attention_heads
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, Subject
from rewrites.test_folds import SMALL, inputs


def test_needs_the_channel_layout(subject: Callable[[str, str], Subject]) -> None:
    with pytest.raises(RewriteError, match="put linear_to_conv2d before it"):
        subject("nano", "unet").rewrite("split_attention_heads")


@pytest.mark.parametrize("weights", [Softmax(), Relu(1.5)])
def test_keys_come_first(step: OneStep, weights: nn.Module) -> None:
    """Softmax and relu's 1/L run over the keys, also where there are fewer of them than queries."""
    from md_export.models.unet import MDUNet

    torch.manual_seed(0)
    unet = MDUNet(replace(SMALL, attention_head_dim=16)).eval().requires_grad_(False)
    for layer in unet.modules():
        if isinstance(layer, Attention):
            layer.weights = weights
    given = inputs(unet.config)
    expected = unet(*given).numpy()
    linear_to_conv2d(unet, step)
    assert split_attention_heads(unet, step) > 0
    assert compare(unet(*given).numpy(), expected).snr_db >= EXACT_DB


def test_unknown_weights_are_refused(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    case.rewrite("linear_to_conv2d")
    next(layer for layer in case.module.modules() if isinstance(layer, Attention)).weights = Gelu()
    with pytest.raises(RewriteError, match="needs softmax or relu, not Gelu"):
        case.rewrite("split_attention_heads")
