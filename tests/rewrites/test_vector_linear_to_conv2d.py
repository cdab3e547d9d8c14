from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from md_export.models.unet import MDUNet
from md_export.parity.metrics import compare
from md_export.rewrites.vector_linear_to_conv2d import vector_linear_to_conv2d
from md_export.spec.sampler import OneStep
from rewrites.forms import EXACT_DB, Subject
from rewrites.test_folds import SMALL, inputs


@pytest.mark.parametrize("time", ["scale_shift", "after_dw", "hidden"])
def test_every_linear_of_the_time_embedding(time: str, step: OneStep) -> None:
    torch.manual_seed(0)
    unet = MDUNet(replace(SMALL, sep_conv_time=time)).eval().requires_grad_(False)
    given = inputs(unet.config)
    expected, keys = unet(*given).numpy(), list(unet.state_dict())
    times = [path for path, layer in unet.named_modules() if "time_" in path and isinstance(layer, nn.Linear)]
    assert vector_linear_to_conv2d(unet, step) == len(times)
    assert compare(unet(*given).numpy(), expected).snr_db >= EXACT_DB
    assert list(unet.state_dict()) == keys
    unet.time_embedding.linear_1.weight.mul_(1.01)
    assert compare(unet(*given).numpy(), expected).snr_db < EXACT_DB - 20


def test_no_linear_is_left(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    case.rewrite("tokens_to_maps", "vector_linear_to_conv2d")
    assert not [path for path, layer in case.module.named_modules() if isinstance(layer, nn.Linear)]


def test_a_folded_timestep_leaves_nothing_to_do(subject: Callable[[str, str], Subject]) -> None:
    _, record = subject("nano", "unet").rewrite("fold_timestep", "vector_linear_to_conv2d")
    assert (record.fired, bool(record.note)) == (0, True)


def test_the_timestep_folds_afterwards_too(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    assert all(record.fired for record in case.rewrite("vector_linear_to_conv2d", "fold_timestep"))
    assert case.snr_db(("timestep",)) >= EXACT_DB
