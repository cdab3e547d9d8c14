"""The audit of a convolution that is stored in parts: each is held against its own channels, and none may be gone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from md_export.parity.weights.audit import ComponentAudit, Ledger
from md_export.parity.weights.reference import Reference, reference_of
from md_export.rewrites.split_wide_conv2d import split_wide_conv2d
from md_export.spec.artifact import ArtifactEntry, Measured
from md_export.spec.sampler import OneStep
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from md_export.targets.stored import StoredWeight

FLOAT32 = QuantScheme("float32", "float32")
PARTS = ("wide.weight[0]", "wide.weight[1]")
ENTRY = ArtifactEntry("wide", "wide", "", 0, "float32", "float32", {}, {}, (), (), (), Measured(0, 0))
# What should be stored, and what is.
Converted = tuple[Reference, list[StoredWeight]]


class Wide(nn.Module):
    """911 input channels under 3×3 are one more than a single sum may have."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(4, 911, 1)
        self.wide = nn.Conv2d(911, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wide(self.before(x))
        return out


@pytest.fixture(scope="module", params=["tflite", "onnx"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """TFLite stores the parts, ONNX the whole, which it splits when the graph is run."""
    torch.manual_seed(0)
    module, workdir = Wide().eval().requires_grad_(False), tmp_path_factory.mktemp("wide")
    assert split_wide_conv2d(module, OneStep(999, 1.0, -1.0, 1.0, "epsilon")) == 1
    given = {"x": torch.randn(1, 4, 5, 6).numpy()}
    taken, made = TensorSpec("x", (1, 4, 5, 6), "float32"), TensorSpec("y", (1, 8, 5, 6), "float32")
    job = LoweringJob("wide", module, (taken,), (made,), given, FLOAT32, (given,), workdir)
    target, path = TARGETS[request.param].open(), workdir / f"wide{TARGETS[request.param].suffix}"
    target.lower(job).quantize(job).save(path)
    return reference_of("wide", module), list(target.stored_weights(path, FLOAT32))


def audited(reference: Reference, stored: Iterable[StoredWeight]) -> ComponentAudit:
    ledger = Ledger(reference, FLOAT32)
    for weight in stored:
        ledger.add(weight)
    return ledger.close(ENTRY)


def wide_weights(stored: list[StoredWeight]) -> list[StoredWeight]:
    return [weight for weight in stored if weight.values.shape[2:] == (3, 3)]


def test_every_part_is_proven(converted: Converted) -> None:
    found = audited(*converted)
    assert found.faults == found.missing == ()
    assert {item.name for item in found.errors if item.name.startswith("wide.weight")} in ({*PARTS}, {"wide.weight"})
    # Lists of axes and sizes.
    assert all(constant.dtype.startswith("int") for constant in found.unmatched)


def test_a_part_that_is_gone(converted: Converted) -> None:
    reference, stored = converted
    wide = wide_weights(stored)
    for gone in wide:
        missing = audited(reference, [weight for weight in stored if weight is not gone]).missing
        assert missing == (PARTS if len(wide) == 1 else (PARTS[gone.values.shape[1] == 455],))


def test_a_wrong_value_in_a_part(converted: Converted) -> None:
    reference, stored = converted
    wide = wide_weights(stored)
    for good in wide:
        values = good.values.copy()
        values[3, -1, 1, 1] += np.abs(values).max()
        bad = dataclasses.replace(good, values=values)
        faults = audited(reference, [bad if weight is good else weight for weight in stored]).faults
        named, peak = PARTS[good.values.shape[1] == 455], np.abs(good.values).max()
        off = f"{named}, stored as float32: 1 of {values.size} values are off, by up to {peak:.3g}"
        # Nothing tells who reads the whole, so it is unknown then.
        gone = tuple(f"{part} is nowhere in the artifact" for part in PARTS)
        assert faults == (gone if len(wide) == 1 else (off,))
