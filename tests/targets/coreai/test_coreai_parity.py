"""A saved asset computes in Apple's runtime what torch computes, in every storage; damaged weights are noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from md_export.errors import ConversionError
from md_export.parity.metrics import compare, first_fault
from md_export.parity.weights.audit import Ledger
from md_export.parity.weights.reference import reference_of
from md_export.spec.artifact import ArtifactEntry, Measured
from md_export.spec.recipe import QuantScheme
from md_export.spec.scheme import WeightRule, WeightStorage, stored_type

FLOAT, HALF = QuantScheme("float32", "float32"), QuantScheme("float16", "float16")
# Decibels that random weights leave.
SMALL = {
    "int8": (QuantScheme("int8", "float32"), 40),
    "int8 per tensor": (QuantScheme("int8", "float32", "tensor"), 35),
    "int8 in float16": (QuantScheme("int8", "float16"), 40),
    "int4 in blocks": (QuantScheme("int4", "float32", "block", block_size=8), 16),
    "palette8": (QuantScheme("palette8", "float32", "tensor"), 35),
    "palette6": (QuantScheme("palette6", "float32", "tensor"), 28),
    "palette4": (QuantScheme("palette4", "float32", "group", group_size=16), 15),
    "palette2": (QuantScheme("palette2", "float16", "group", group_size=16), 3),
}


def snr_db(path: Path, subject: Any, coreai: Any) -> float:
    (found,) = coreai.load(path).run(subject.given).values()
    assert first_fault(found, subject.expected()) is None
    return compare(found, subject.expected()).snr_db


@pytest.mark.parametrize(
    ("component", "scheme", "least"),
    [
        ("text_encoder", FLOAT, 100),
        ("unet", FLOAT, 100),
        ("vae_decoder", FLOAT, 100),
        ("text_encoder", HALF, 48),
        ("vae_decoder", HALF, 48),
        ("vae_decoder", SMALL["int8"][0], 20),
    ],
)
def test_a_component_computes_what_torch_computes(
    component: str, scheme: QuantScheme, least: float, subject: Any, asset: Callable[..., Path], coreai: Any
) -> None:
    assert snr_db(asset(component, scheme), subject(component), coreai) >= least


@pytest.mark.parametrize("name", SMALL)
def test_a_storage_is_what_was_asked_for_and_what_the_runtime_decodes(
    name: str, subject: Any, asset: Callable[..., Path], coreai: Any
) -> None:
    """With the decoded weights in torch's module, torch and Apple's runtime agree: the file's operations mean that."""
    scheme, least = SMALL[name]
    small, path = subject("small"), asset("small", scheme)
    assert snr_db(path, small, coreai) >= least
    ledger = Ledger(reference_of("text_encoder", small.module), scheme)
    weights = list(coreai.stored_weights(path, scheme))
    for weight in weights:
        ledger.add(weight)
    audit = ledger.close(_ENTRY)
    assert audit.faults == ()
    assert audit.as_requested == audit.promised > 0
    found = coreai.describe(path)
    assert found.stored[stored_type(scheme.weights)] == sum(
        part for weight in weights for kind, part in weight.parts.items() if kind == stored_type(scheme.weights)
    )
    decoded = _decoded(small.module, weights)
    assert snr_db(path, replace(small, module=decoded), coreai) >= (100 if scheme.activations == "float32" else 50)


_ENTRY = ArtifactEntry(
    "text_encoder", "x.aimodel", "", 0, "", "", {}, {}, (), (), (), Measured(seconds=1, peak_resident_bytes=1)
)


def _decoded(module: nn.Module, weights: list[Any]) -> nn.Module:
    """A copy whose matrices are those of the file; their shapes all differ but for the embedding's."""
    made = type(module)().eval()
    made.load_state_dict(module.state_dict())
    for weight in weights:
        if weight.promised:
            (path,) = {name for use in weight.uses for name in use.modules}
            with torch.no_grad():
                made.get_parameter(f"{path}.weight").copy_(torch.from_numpy(np.array(weight.values)))
    return made


@pytest.mark.parametrize("path", ["words", "square", "conv", "turned", "norm", "groups"])
def test_a_flipped_weight_is_another_result_and_is_named(
    path: str, subject: Any, asset: Callable[..., Path], coreai: Any, tmp_path: Path
) -> None:
    small, scheme = subject("small"), SMALL["int8"][0]
    copy = Path(shutil.copytree(asset("small", scheme), tmp_path / "x.aimodel"))
    wanted = small.module.get_submodule(path).weight.detach().numpy()
    with coreai.edit(copy) as constants:
        alike = [item for item in constants if item.role == "weight" and item.values.size == wanted.size]
        # A norm's factors are ones; matrices are int8.
        norm = wanted.ndim == 1
        item = next(item for item in alike if ((item.values == 1).all() if norm else item.values.dtype == np.int8))
        item.values[...] = -item.values
    assert snr_db(copy, small, coreai) < 10
    ledger = Ledger(reference_of("text_encoder", small.module), scheme)
    for weight in coreai.stored_weights(copy, scheme):
        ledger.add(weight)
    assert ledger.close(_ENTRY).faults


def test_rules_and_kept_modules(subject: Any, coreai: Any, tmp_path: Path) -> None:
    rules = (WeightRule(("conv",), "int4", "block", 8), WeightRule(("sq*",), "float32"))
    path = subject("small").export(QuantScheme("int8", "float32", keep_float=("words",), rules=rules), tmp_path)
    found = coreai.describe(path)
    assert set(found.float_weights) == {"words", "square"}
    assert {kind for kind, size in found.stored.items() if size > 1000} == {"float32", "int8", "int4"}
    assert found.int8_weights == 1


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (QuantScheme("palette3", "float32", "tensor"), "palette3/float32"),
        (QuantScheme("float16", "float32"), "float16/float32"),
        (QuantScheme("int8", "float32", sparsity=0.3), "no sparsity"),
        (QuantScheme("int8", "float32", keep_float=("nowhere",)), "keep_float pattern 'nowhere' matches no"),
    ],
)
def test_what_it_cannot_make_is_said(scheme: QuantScheme, message: str, subject: Any, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        subject("small").export(scheme, tmp_path)


def test_storage_told_beforehand_is_storage_found(subject: Any, asset: Callable[..., Path], coreai: Any) -> None:
    """Rounding with calibration is computed for the groups that :func:`weight_storage` tells."""
    for scheme, _ in SMALL.values():
        told = {
            path: coreai.weight_storage(path, layer, scheme) for path, layer in subject("small").module.named_modules()
        }
        for weight in coreai.stored_weights(asset("small", scheme), scheme):
            if weight.promised:
                storage: WeightStorage | None = told[weight.uses[0].modules[0]]
                assert storage is not None
                held = weight.grid.steps.shape if weight.grid else weight.palette.tables.shape[:-1]
                assert storage.groups == held
