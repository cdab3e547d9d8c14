"""DiT's and PixArt's transformers and T5's encoder compute what diffusers' and transformers' own modules compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from md_export.errors import ConfigError
from md_export.models.dit import DiTConfig
from md_export.models.pixart import PixArt, PixArtConfig
from md_export.models.t5_encoder import SHARE, T5Config
from md_export.targets.lowering import half_copy
from models.patch_cases import CASES, CELLS, DOWNSCALE, SIZED, db, pixart, t5
from rewrites.forms import EXACT_DB


@pytest.mark.parametrize("name", CASES)
def test_same_function_as_the_librarys(name: str) -> None:
    case = CASES[name]()
    found = case.ours()(*case.given)
    assert found.shape == (case.given[0].shape if found.ndim == 4 else case.wanted.shape)
    assert db(found, case.wanted) > EXACT_DB


@pytest.mark.parametrize("name", CASES)
def test_every_weight_counts(name: str) -> None:
    case = CASES[name]()
    for parameter, value in list(case.theirs.named_parameters())[::3]:
        # Scores of one query all move by the bias of keys, which softmax does not see.
        if not parameter.endswith("to_k.bias"):
            value.mul_(1.1)
            assert db(case.ours()(*case.given), case.wanted) < EXACT_DB - 20, parameter
            value.div_(1.1)


@pytest.mark.parametrize(
    ("name", "place", "other"),
    [
        ("dit", 1, torch.tensor([704.0])),
        ("dit", 2, torch.tensor([8, 1000], dtype=torch.int32)),
        ("pixart", 3, torch.ones(2, 10)),
        ("t5", 1, torch.ones(2, 24)),
    ],
    ids=["timestep", "label", "mask", "mask of t5"],
)
def test_every_condition_counts(name: str, place: int, other: Tensor) -> None:
    case = CASES[name]()
    given = [*case.given]
    given[place] = other
    assert db(case.ours()(*given), case.wanted) < EXACT_DB - 40


def test_size_of_the_picture_counts() -> None:
    case = pixart(SIZED, CELLS)
    other = dataclasses.replace(case, build=lambda: PixArt(SIZED, CELLS, 2 * DOWNSCALE))
    assert db(other.ours()(*case.given), case.wanted) < EXACT_DB - 40


def test_constants_take_the_place_of_what_computes_them() -> None:
    """As loaded; a module that is only built holds all that a checkpoint holds."""
    for name, gone in (("pixart-sized", "resolution_embedder"), ("t5", "relative_attention_bias")):
        case = CASES[name]()
        assert any(gone in key for key in case.build().state_dict())
        assert not any(gone in key for key in case.ours().state_dict())


def test_float16_holds_activations_beyond_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5-XXL's residual stream passes 65504."""
    case = t5()
    for block in case.theirs.encoder.block:
        block.layer[1].DenseReluDense.wi_1.weight.mul_(60)
        block.layer[1].DenseReluDense.wo.weight.mul_(20_000)
    wanted = case.theirs(case.given[0], attention_mask=case.given[1], output_hidden_states=True)
    assert 65504 < wanted.hidden_states[1].abs().max() < 65504 / SHARE
    assert db(half_copy(case.ours())(*case.given), wanted.last_hidden_state) > 50
    monkeypatch.setattr("md_export.models.t5_encoder.SHARE", 1.0)
    assert not half_copy(case.ours())(*case.given).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (DiTConfig, {"sample_size": 9}),
        (DiTConfig, {"patch_size": 3, "sample_size": 33}),
        (DiTConfig, {"out_channels": 5}),
        (DiTConfig, {"attention_head_dim": 33, "num_attention_heads": 1}),
        (PixArtConfig, {"cross_attention_dim": 24}),
        (T5Config, {"feed_forward_proj": "gated-silu"}),
        (T5Config, {"relative_attention_num_buckets": 600}),
    ],
)
def test_what_no_module_can_be_is_refused(kind: Any, fields: Mapping[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        kind(**fields)
