"""The float16 copy: float32 at its surface and in its tables, nothing of the original touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from md_export.errors import ConversionError
from md_export.models.layers import TimestepEmbedding
from md_export.parity.metrics import compare
from md_export.targets.lowering import half_copy


def snr_db(copy: nn.Module, module: nn.Module, value: torch.Tensor) -> float:
    with torch.no_grad():
        found, expected = copy(value), module(value)
    assert found.dtype == torch.float32
    return compare(found.numpy(), expected.numpy()).snr_db


def test_the_time_embedding_survives_and_would_not_with_a_half_table() -> None:
    torch.manual_seed(0)
    module = TimestepEmbedding(32, 64).eval()
    copy, spoiled = half_copy(module), half_copy(module)
    assert isinstance(spoiled, TimestepEmbedding)
    spoiled.frequencies = spoiled.frequencies.half()
    late = torch.tensor([998.7])
    assert snr_db(copy, module, late) > 55
    assert snr_db(spoiled, module, late) < 40


def test_names_stay_and_the_original_stays_float32() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    copy = half_copy(module)
    assert list(copy.state_dict()) == list(module.state_dict())
    assert {p.dtype for p in copy.parameters()} == {torch.float16}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert copy.get_buffer("1.running_mean").dtype == torch.float16
    assert copy.get_buffer("1.num_batches_tracked").dtype == torch.int64


def test_tied_parameters_stay_tied() -> None:
    module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    module[1].weight = module[0].weight
    copy = half_copy(module)
    assert copy.get_parameter("0.weight") is copy.get_parameter("1.weight")


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_a_weight_that_float16_cannot_hold_is_named(value: float) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        module.get_parameter("0.weight")[0, 0] = value
    with pytest.raises(ConversionError, match=r"0\.weight has values beyond float16's range"):
        half_copy(module)


def test_inputs_that_a_hook_hands_on_by_name_are_cast_too() -> None:
    """As diffusers' UNet takes what a ControlNet adds."""

    class Sum(nn.Linear):
        def forward(self, value: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
            out: torch.Tensor = super().forward(value if added is None else value + added)
            return out

    module = Sum(64, 64)
    module.register_forward_pre_hook(lambda _, args, _kwargs: (args[:1], {"added": args[1]}), with_kwargs=True)
    value = torch.from_numpy(np.linspace(-1, 1, 64, dtype=np.float32)[None])
    with torch.no_grad():
        found, expected = half_copy(module)(value, value), module(value, value)
    assert found.dtype == torch.float32
    assert 50 < compare(found.numpy(), expected.numpy()).snr_db < 90


def test_half_weights_differ_from_the_original() -> None:
    """Negative control: the copy is not the original under another name."""
    module = nn.Linear(64, 64)
    value = torch.from_numpy(np.linspace(-1, 1, 64, dtype=np.float32)[None])
    assert snr_db(half_copy(module), module, value) < 90
