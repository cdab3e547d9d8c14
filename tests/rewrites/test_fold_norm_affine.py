from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from md_export.errors import RewriteError
from md_export.models.layers import SepConvBlock
from md_export.models.unet import MDUNet
from md_export.models.vae import SpatialAttention
from md_export.parity.metrics import compare
from md_export.rewrites.fold_norm_affine import fold_norm_affine
from md_export.rewrites.fold_timestep import fold_timestep
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, Subject
from rewrites.test_folds import SMALL, inputs


def affines(module: nn.Module) -> int:
    """Norms that have one."""
    return sum(isinstance(x, (nn.LayerNorm, nn.GroupNorm)) and x.weight is not None for x in module.modules())


def with_affines(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if isinstance(norm, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_affines_go_and_nothing_else(subject: Callable[[str, str], Subject], component: str) -> None:
    """In the model whose gammas have zeros; layers without a bias get one."""
    case = subject("other", component)
    before = affines(case.module)
    (record,) = case.rewrite("fold_norm_affine")
    assert record.fired == before - affines(case.module) > 0
    assert case.snr_db() >= EXACT_DB
    (record,) = case.rewrite("fold_norm_affine")
    assert (record.fired, bool(record.note)) == (0, True)


@pytest.mark.parametrize("time", ["scale_shift", "after_dw", "hidden"])
@pytest.mark.parametrize("timeless", [False, True])
def test_separable_convolutions(time: str, timeless: bool, step: OneStep) -> None:
    """Where the time embedding scales behind the norm, the affine stays, unless the timestep is folded."""
    torch.manual_seed(0)
    unet = with_affines(MDUNet(replace(SMALL, sep_conv_time=time)))
    sample, timestep, text = inputs(SMALL)
    expected = unet(sample, timestep, text).numpy()
    given = (sample, text) if timeless else (sample, timestep, text)
    if timeless:
        fold_timestep(unet, step)
    fold_norm_affine(unet, step)
    assert compare(unet(*given).numpy(), expected).snr_db >= EXACT_DB
    kept = [block.norm.weight is not None for block in unet.modules() if isinstance(block, SepConvBlock)]
    assert set(kept) == {time == "scale_shift" and not timeless}


def test_attention_of_the_vae_and_damage(step: OneStep) -> None:
    torch.manual_seed(0)
    attention = with_affines(SpatialAttention(24, 4, 1e-6))
    x = torch.randn(1, 24, 6, 10)
    expected = attention(x).numpy()
    assert fold_norm_affine(attention, step) == 1
    assert compare(attention(x).numpy(), expected).snr_db >= EXACT_DB
    attention.to_v.bias.mul_(1.01)  # type: ignore[union-attr, operator]
    assert compare(attention(x).numpy(), expected).snr_db < EXACT_DB - 20


def test_a_beta_of_zeros_adds_no_bias(step: OneStep) -> None:
    unet = with_affines(MDUNet(SMALL))
    for norm in unet.modules():
        if isinstance(norm, nn.LayerNorm):
            norm.bias.zero_()
    fold_norm_affine(unet, step)
    assert not [name for name in unet.state_dict() if name.endswith("to_q.bias")]


def test_the_checkpoint_is_not_written_to(subject: Callable[[str, str], Subject]) -> None:
    """Its tensors may be mapped from the file."""
    case = subject("nano", "unet")
    before = {name: (tensor, tensor.clone()) for name, tensor in case.module.state_dict().items()}
    case.rewrite("fold_norm_affine")
    assert all(torch.equal(tensor, copy) for tensor, copy in before.values())


def test_after_a_form_that_keeps_the_affine_elsewhere_it_is_refused(subject: Callable[[str, str], Subject]) -> None:
    with pytest.raises(RewriteError, match="must come before linear_to_conv2d"):
        subject("nano", "unet").rewrite("linear_to_conv2d", "fold_norm_affine")
    case = subject("nano", "unet")
    case.rewrite("fold_norm_affine", "linear_to_conv2d")
    assert case.snr_db() >= EXACT_DB
