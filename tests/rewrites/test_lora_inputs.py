"""LoRAs as inputs: every kind of layer computes what fused weights do, and nothing without a style."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from md_export.rewrites.lora_branches import Factors
from md_export.rewrites.lora_inputs import give_inputs, slot_among, slots_of, values_of
from md_export.rewrites.upsample_to_four_convs import FourConv2d, phases
from md_export.rewrites.vector_linear_to_conv2d import VectorConv2d
from md_export.spec.loras import SCALE_INPUT

RANK = 3


class Part(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner[0](x)
        return out


def four() -> FourConv2d:
    conv = FourConv2d(6, 4, 3, padding=1)
    conv.register_buffer("phases", phases(conv.weight), persistent=False)
    return conv


MAP = (1, 6, 8, 10)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tokens": (lambda: nn.Linear(6, 4), (1, 5, 6)),
    "vectors": (lambda: nn.Linear(6, 4), (1, 6)),
    "vectors by a convolution": (lambda: VectorConv2d(6, 4, 1), (1, 6)),
    "1x1": (lambda: nn.Conv2d(6, 4, 1), MAP),
    "3x3": (lambda: nn.Conv2d(6, 4, 3, padding=1), MAP),
    "3x3, stride 2": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), MAP),
    "upsampling": (four, MAP),
    "two pictures": (lambda: nn.Conv2d(6, 4, 3, padding=1), (2, 6, 8, 10)),
}


def fused(layer: nn.Linear | nn.Conv2d, factors: Factors) -> nn.Module:
    with torch.no_grad():
        layer.weight += (factors.up @ factors.down).reshape(layer.weight.shape)
        if factors.shift is not None:
            assert layer.bias is not None
            layer.bias += factors.shift
        if isinstance(layer, FourConv2d):
            layer.phases = phases(layer.weight)
    return layer


@torch.no_grad()
@pytest.mark.parametrize(("name", "last", "shifted"), [*product(LAYERS, (False, True), (False, True))])
def test_every_kind_of_layer(name: str, last: bool, shifted: bool) -> None:
    make, shape = LAYERS[name]
    part, other = Part(make()), Part(make())
    other.load_state_dict(part.state_dict())
    x = torch.randn(shape)
    columns = part.inner[0].get_parameter("weight")[0].numel()
    factors = Factors(torch.randn(4, RANK), torch.randn(RANK, columns), torch.randn(4) if shifted else None)
    before, wanted = part(x), Part(fused(other.inner[0], factors))(x)  # type: ignore[arg-type]
    (slot,) = slots = slots_of(part, [x], [{"inner.0": factors}], RANK + 2, last)
    specs = give_inputs(part, slots)
    values = values_of(slots, {"inner.0": factors})
    assert torch.allclose(part(x, *(values[spec.name] for spec in specs)), wanted, atol=1e-4)
    assert not torch.allclose(before, wanted, atol=0.1)
    assert torch.equal(part(x, *(torch.zeros(spec.shape) for spec in specs)), before)
    half = values | {SCALE_INPUT: values[SCALE_INPUT] / 2}
    assert torch.allclose(part(x, *(half[spec.name] for spec in specs)), (before + wanted) / 2, atol=1e-4)
    assert slot_among(part.get_submodule("inner.0"), "inner.0", specs, last) == slot


@torch.no_grad()
def test_a_layer_that_a_style_does_not_change() -> None:
    part = Part(nn.Linear(6, 4))
    x, factors = torch.randn(1, 5, 6), Factors(torch.randn(4, RANK), torch.randn(RANK, 6))
    slots = slots_of(part, [x], [{"inner.0": factors}, {}], RANK, False)
    before, specs = part(x), give_inputs(part, slots)
    values = values_of(slots, {})
    assert float(values[SCALE_INPUT]) == 1
    assert torch.equal(part(x, *(values[spec.name] for spec in specs)), before)
