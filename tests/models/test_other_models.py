"""SDXL's text encoders and DiT's transformer, small, through ONNX and Core ML."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from md_export.parity.metrics import compare
from rewrites.forms import EXACT_DB
from support import installed

TEXT: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT |= {"vocab_size": 600, "max_position_embeddings": 77, "bos_token_id": 598, "eos_token_id": 2}
SMALL: dict[str, Callable[[Any], Any]] = {
    "text1": lambda library: library.clip_model(False, **TEXT),
    "text2": lambda library: library.clip_model(True, **TEXT, projection_dim=48, hidden_act="gelu"),
    "dit": lambda library: library.dit_model(num_attention_heads=2, attention_head_dim=16, num_layers=2, sample_size=8),
}


@pytest.fixture(scope="module")
def library() -> Iterator[Any]:
    """``benchmarks/other_models.py``; names of its neighbours are also those of packages, hence last."""
    pytest.importorskip("diffusers", reason="needs the extra diffusers")
    place = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.append(place)
    yield importlib.import_module("other_models")
    sys.path.remove(place)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_lowered_is_what_the_library_computes(library: Any, name: str) -> None:
    model = SMALL[name](library)
    with torch.no_grad():
        wanted = model.library()
        found = model.module(*(torch.from_numpy(array) for array in model.arrays.values()))
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert compare(ours.numpy(), theirs.numpy()).snr_db > EXACT_DB


@pytest.mark.parametrize("name", SMALL)
def test_the_measure_sees_small_damage(library: Any, name: str) -> None:
    model = SMALL[name](library)
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        weights = [weight for weight in module.parameters() if weight.ndim == 2]
        weights[len(weights) // 2].mul_(1.01)
        pairs = zip(module(*map(torch.from_numpy, model.arrays.values())), model.library(), strict=True)
        assert min(compare(ours.numpy(), theirs.numpy()).snr_db for ours, theirs in pairs) < EXACT_DB - 20


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_float16_by_the_targets_own_runtime(library: Any, name: str, target: str, tmp_path: Path) -> None:
    installed(target)
    assert min(library.lowered_db(SMALL[name](library), target, tmp_path)) > 50
