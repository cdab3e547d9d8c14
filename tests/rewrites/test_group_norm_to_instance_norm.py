from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from md_export.artifact import OneStep
from md_export.parity.metrics import compare
from md_export.rewrites.group_norm_to_instance_norm import InstanceGroupNorm, group_norm_to_instance_norm
from rewrites.forms import EXACT_DB, Subject


def norm_of(affine: bool) -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 12, eps=1e-5, affine=affine).requires_grad_(False)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(1, 12, 5, 7), (2, 12, 1, 64), (1, 12, 1, 1)])
def test_same_norm(step: OneStep, affine: bool, shape: tuple[int, ...]) -> None:
    norm = norm_of(affine)
    # So quiet that eps matters, and off centre.
    x = torch.randn(shape) * 3e-3 + 0.5
    expected = norm(x).numpy()
    assert group_norm_to_instance_norm(norm, step) == 1
    # The offset costs float32 some 7 of its 24 bits, in either form.
    assert compare(norm(x).numpy(), expected).snr_db >= EXACT_DB - 20
    norm.eps = 2e-5
    assert compare(norm(x).numpy(), expected).snr_db < EXACT_DB - 60


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_every_norm_of_a_component(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("other", component)
    norms = sum(isinstance(layer, nn.GroupNorm) for layer in case.module.modules())
    (record,) = case.rewrite("group_norm_to_instance_norm")
    assert record.fired == norms == sum(isinstance(layer, InstanceGroupNorm) for layer in case.module.modules())
    (record,) = case.rewrite("group_norm_to_instance_norm")
    assert (record.fired, bool(record.note)) == (0, True)
