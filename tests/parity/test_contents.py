"""Stored types of a mixed scheme: the gate counts weights, not bytes, of all types that the scheme asks for."""

from __future__ import annotations

import pytest

from md_export.parity.metrics import Check
from md_export.parity.opened_export import stored_faults
from md_export.spec.artifact import ArtifactEntry, Measured
from md_export.spec.scheme import QuantScheme, WeightRule
from md_export.targets.contract import Description

MIXED = QuantScheme("int8", "float32", rules=(WeightRule(("up_blocks.*",), "int4", granularity="channel"),))
PARTLY_FLOAT = QuantScheme("int8", "float32", rules=(WeightRule(("conv_out",), "float16"),))
# 4000, 6000 and 100 weights.
AS_ASKED = {"int8": 4000, "int4": 3000, "float32": 400}


def faults(scheme: QuantScheme, stored: dict[str, int], component: str = "unet") -> list[str]:
    done = Measured(0, 0)
    entry = ArtifactEntry(component, "x", "", 0, scheme.weights, scheme.activations, stored, {}, (), (), (), done)
    found = stored_faults(entry, scheme, Description(stored, {}))
    assert {fault.check for fault in found} <= {Check.STORED}
    return list(map(str, found))


def test_both_types_count() -> None:
    assert faults(MIXED, AS_ASKED) == []
    # Neither has half of the weights.
    assert faults(MIXED, {"int8": 4000, "int4": 2000, "float32": 4 * 7000}) == []


def test_a_third_type_that_dominates() -> None:
    (fault,) = faults(MIXED, {**AS_ASKED, "float32": 4 * 20_000})
    assert fault == "int8 and int4 was requested, but only 33% of its weights are stored so"
    # Two thirds of the weights, two fifths of the bytes.
    (fault,) = faults(MIXED, {**AS_ASKED, "uint2": 20_000 // 4})
    assert "only 33%" in fault


@pytest.mark.parametrize("stored", [{"int8": 4000}, {"int4": 4000}])
def test_either_type_alone(stored: dict[str, int]) -> None:
    assert faults(MIXED, stored) == []


def test_floats_alone_are_not_what_a_rule_for_float_asked_for() -> None:
    assert faults(PARTLY_FLOAT, {"int8": 4000, "float16": 12_000}) == []
    assert faults(PARTLY_FLOAT, {"float16": 12_000}) == ["int8 was requested, but none of its weights is stored so"]


def test_a_rule_for_modules_of_another_chunk() -> None:
    scheme = QuantScheme("float16", "float32", rules=(WeightRule(("conv_out",), "int8"),))
    assert faults(scheme, {"float16": 12_000}, "unet_chunk1") == []
    assert faults(scheme, {"float16": 12_000}) == ["int8 was requested, but none of its weights is stored so"]
