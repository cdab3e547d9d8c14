"""Operations know their torch modules, and the values between them are those that torch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from md_export.parity.metrics import compare
from md_export.spec.recipe import QuantScheme
from md_export.spec.scheme import WeightStorage

FLOAT = QuantScheme("float32", "float32")


def test_each_module_has_its_value(subject: Any, asset: Callable[..., Path], coreai: Any) -> None:
    small, path = subject("small"), asset("small", FLOAT)
    steps = coreai.graph(path).steps
    last = {step.modules[0]: step.outputs[0] for step in steps if step.modules}
    assert {"", "words", "norm", "square", "conv", "groups", "turned"} == set(last)
    found = coreai.values(path, small.given, list(last.values()))
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, made, name=name: seen.__setitem__(name, made))
        for name, module in small.module.named_modules()
    ]
    small.expected()
    for hook in hooks:
        hook.remove()
    for name, value in last.items():
        wanted = seen[name].detach().numpy()
        assert compare(found[value].reshape(wanted.shape), wanted).snr_db > 100, name


def test_every_value_that_a_step_takes_is_made_before(asset: Callable[..., Path], coreai: Any) -> None:
    known: set[str] = set()
    steps = coreai.graph(asset("text_encoder", FLOAT)).steps
    made = [name for step in steps for name in step.outputs]
    assert len(made) == len(set(made))
    for step in steps:
        assert not (set(step.inputs) & set(made)) - known
        known |= set(step.outputs)
    assert {"layer_norm", "softmax", "broadcasting_batch_matmul"} <= {step.kind for step in steps}


WIDTHS = {"uint1": 1, "uint2": 2, "uint4": 4, "uint6": 6}


@pytest.mark.parametrize("dtype", [*WIDTHS, "int4"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_packing_has_a_way_back(dtype: str, data: st.DataObject) -> None:
    from md_export.targets.coreai.constants import Element, packed, unpacked

    signed = dtype == "int4"
    bits = 4 if signed else WIDTHS[dtype]
    element = Element(dtype, bits, np.dtype(np.int8 if signed else np.uint8))
    low, high = (-8, 7) if signed else (0, 2**bits - 1)
    values = np.array(data.draw(st.lists(st.integers(low, high), min_size=1, max_size=40)), element.numpy)
    raw = packed(values, element)
    assert raw.size == -(-values.size * bits // 8)
    assert np.array_equal(unpacked(raw, element, values.shape), values)


def test_packing_is_apples() -> None:
    """Apple's own packers, in the library that the converter is."""
    from coreai_torch._compression._intx import pack_intx, pack_uintx

    from md_export.targets.coreai.constants import Element, packed

    values = np.arange(24, dtype=np.uint8).reshape(2, 12)
    for bits in (2, 4, 6):
        own = values % 2**bits
        element = Element(f"uint{bits}", bits, np.dtype(np.uint8))
        assert np.array_equal(packed(own, element), pack_uintx(torch.from_numpy(own), bits).numpy())
    signed = (values % 16).astype(np.int8) - np.int8(8)
    element = Element("int4", 4, np.dtype(np.int8))
    assert np.array_equal(packed(signed, element), pack_intx(torch.from_numpy(signed), 4).numpy())


@pytest.mark.parametrize("groups", [(1, 1), (8, 1), (8, 3), (1, 2)])
def test_integers_are_within_half_a_step(groups: tuple[int, ...]) -> None:
    from md_export.targets.coreai.constants import integers, scaled

    weight = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    values, scales = integers(weight, WeightStorage(4, groups, levels=7))
    assert scales.shape == groups
    assert np.abs(values).max() == 7
    back = scaled(values, scales, (np.zeros(groups, np.int8), np.zeros(groups, np.float32)))
    steps = scaled(np.ones_like(values), scales, (np.zeros(groups, np.int8), np.zeros(groups, np.float32)))
    assert (np.abs(back - weight) <= steps * 0.5001).all()
    assert np.abs(back - weight).max() > 0.1 * steps.min()
