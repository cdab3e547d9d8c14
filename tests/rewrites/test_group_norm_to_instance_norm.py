from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from md_export.rewrites.group_norm_to_instance_norm import InstanceGroupNorm, group_norm_to_instance_norm
from md_export.spec.sampler import OneStep
from rewrites.forms import NORM_SHAPES, Subject, check_norm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_same_norm(step: OneStep, affine: bool, shape: tuple[int, ...]) -> None:
    check_norm(group_norm_to_instance_norm, step, affine, shape)


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_every_norm_of_a_component(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("other", component)
    norms = sum(isinstance(layer, nn.GroupNorm) for layer in case.module.modules())
    (record,) = case.rewrite("group_norm_to_instance_norm")
    assert record.fired == norms == sum(isinstance(layer, InstanceGroupNorm) for layer in case.module.modules())
    (record,) = case.rewrite("group_norm_to_instance_norm")
    assert (record.fired, bool(record.note)) == (0, True)
