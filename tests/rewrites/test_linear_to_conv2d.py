from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from md_export.parity.metrics import compare
from md_export.rewrites.linear_to_conv2d import (
    ChannelLayerNorm,
    count_conv2d,
    linear_to_conv2d,
    to_channel_layer_norm,
)
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, Subject, check_vae_attention


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_every_token_linear_becomes_a_convolution(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("nano", component)
    before = [path for path, layer in case.module.named_modules() if isinstance(layer, nn.Linear)]
    (record,) = case.rewrite("linear_to_conv2d")
    left = [path for path, layer in case.module.named_modules() if isinstance(layer, nn.Linear)]
    assert record.fired == len(before) - len(left) > 0
    assert all("time_emb" in path for path in left)
    norms = [layer for layer in case.module.modules() if isinstance(layer, nn.LayerNorm)]
    assert norms
    assert all(isinstance(norm, ChannelLayerNorm) for norm in norms)


def test_weights_are_views(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    before = {path: layer.weight for path, layer in case.module.named_modules() if isinstance(layer, nn.Linear)}
    case.rewrite("linear_to_conv2d")
    after = {path: layer for path, layer in case.module.named_modules() if isinstance(layer, nn.Conv2d)}
    shared = [path for path in before if path in after]
    assert shared
    assert all(after[path].weight.data_ptr() == before[path].data_ptr() for path in shared)


def test_a_second_time_it_is_in_place_already(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    case.rewrite("linear_to_conv2d")
    (record,) = case.rewrite("linear_to_conv2d")
    assert record.fired == 0
    assert record.note


def test_a_decoder_without_attention_passes(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "vae_decoder")
    (record,) = case.rewrite("linear_to_conv2d")
    assert (record.fired, count_conv2d(case.module) > 0) == (0, True)


def test_attention_of_the_vae(step: OneStep) -> None:
    check_vae_attention(linear_to_conv2d, step)


AFFINES = {
    "usual": ([0.5, -1.5, 2.0, 1.0], [0.1, 0.0, -3.0, 0.2]),
    "a zero gamma": ([0.5, 0.0, 2.0, 0.0], [0.1, 0.3, -3.0, 0.0]),
    "gamma 1": ([1.0, 1.0, 1.0, 1.0], [0.1, 0.3, -3.0, 0.2]),
    "beta 0": ([0.5, -1.5, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
    "none": ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
    "tiny gamma": ([1e-12, 1.0, 2.0, 3.0], [5.0, 0.3, -3.0, 0.0]),
}


@pytest.mark.parametrize("affine", AFFINES)
def test_channel_layer_norm(affine: str) -> None:
    gamma, beta = (torch.tensor(values) for values in AFFINES[affine])
    norm = nn.LayerNorm(4, eps=1e-5).requires_grad_(False)
    norm.load_state_dict({"weight": gamma, "bias": beta})
    tokens = torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(0))
    expected = norm(tokens).numpy()
    to_channel_layer_norm(norm)
    out = norm(tokens.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2).numpy()
    assert compare(out, expected).snr_db >= EXACT_DB
    assert list(norm.state_dict()) == ["weight", "bias"]
