from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from md_export.errors import RewriteError
from md_export.parity.metrics import compare
from md_export.rewrites.staged_group_norm import StagedGroupNorm, staged_group_norm
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, NORM_SHAPES, Subject, check_norm, norm_of


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_same_norm(step: OneStep, affine: bool, shape: tuple[int, ...]) -> None:
    check_norm(staged_group_norm, step, affine, shape)


def test_groups_are_those_of_group_norm(step: OneStep) -> None:
    """A neighbour's channel in a group is seen."""
    norm = norm_of(True)
    x = torch.randn(1, 12, 5, 7) * torch.linspace(0.5, 2, 12)[None, :, None, None]
    expected = norm(x).numpy()
    staged_group_norm(norm, step)
    assert compare(norm(x).numpy(), expected).snr_db >= EXACT_DB
    norm.down = norm.down.roll(1, 1)  # type: ignore[operator]
    assert compare(norm(x).numpy(), expected).snr_db < EXACT_DB - 60


@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_every_norm_of_a_component(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("other", component)
    keys, norms = list(case.module.state_dict()), sum(isinstance(x, nn.GroupNorm) for x in case.module.modules())
    (record,) = case.rewrite("staged_group_norm")
    assert record.fired == norms == sum(isinstance(layer, StagedGroupNorm) for layer in case.module.modules())
    assert list(case.module.state_dict()) == keys
    (record,) = case.rewrite("staged_group_norm")
    assert (record.fired, bool(record.note)) == (0, True)


def test_another_form_of_the_norm_is_no_silent_success(subject: Callable[[str, str], Subject]) -> None:
    with pytest.raises(RewriteError, match="fires nowhere"):
        subject("other", "unet").rewrite("group_norm_to_instance_norm", "staged_group_norm")
