from __future__ import annotations

from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.spec.scheme import QuantScheme, Rounding, WeightStorage, largest_divisor, per_channel, per_tensor
from md_export.targets.quantization.adjust import adjust_weights, batches
from md_export.targets.quantization.gptq import InputSums, as_matrices, columns, compensated, products, rounded
from md_export.targets.quantization.levels import least_squares, memberships, widest

Kind = Literal["linear", "conv", "strided", "dilated", "depthwise", "grouped"]
torch.manual_seed(0)
LAYERS: dict[Kind, nn.Conv2d | nn.Linear] = {
    "linear": nn.Linear(12, 8),
    "conv": nn.Conv2d(8, 12, 3, padding=1),
    "strided": nn.Conv2d(8, 12, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(8, 12, 3, dilation=2),
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "grouped": nn.Conv2d(8, 12, 1, groups=2),
}


def inputs_of(layer: nn.Module, seed: int = 0) -> Tensor:
    """Correlated, of unequal sizes and not centred, as activations are."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(layer, nn.Linear):
        mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(7))
        return torch.randn(64, 12, generator=generator) @ mixing + 0.5
    maps = torch.randn(2, 1, 10, 10, generator=generator) + 0.3 * torch.randn(2, 8, 10, 10, generator=generator)
    return maps * torch.linspace(0.2, 2, 8)[:, None, None] + 0.5


def storages_of(layer: nn.Conv2d | nn.Linear) -> dict[str, WeightStorage]:
    shape = tuple(layer.weight.shape)
    blocks = (shape[0], shape[1] // largest_divisor(shape[1], 4), *per_tensor(shape)[2:])
    return {
        "int8 per channel": WeightStorage(8, per_channel(shape), levels=127),
        "int4 per block": WeightStorage(4, blocks, levels=7),
        "int4 per tensor": WeightStorage(4, per_tensor(shape), levels=7),
        "palette of 8": WeightStorage(3, per_tensor(shape), entries=8),
        "palette of 4, groups": WeightStorage(2, (4, *per_tensor(shape)[1:]), entries=4),
    }


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_the_product_of_its_matrices_and_columns(kind: Kind) -> None:
    layer = LAYERS[kind]
    x = inputs_of(layer)
    made = torch.bmm(as_matrices(layer, layer.weight), columns(layer, x)).flatten(0, 1)
    wanted = layer(x)
    wanted = wanted.transpose(0, 1).flatten(1) if wanted.ndim == 4 else wanted.T
    assert layer.bias is not None
    torch.testing.assert_close(made + layer.bias[:, None], wanted, atol=1e-4, rtol=1e-4)


def test_a_layer_for_a_vector_counts_as_a_map_of_one_pixel() -> None:
    layer = nn.Conv2d(8, 12, 1)
    torch.testing.assert_close(columns(layer, torch.ones(3, 8)), torch.ones(1, 8, 3))


def test_large_maps_are_taken_at_some_positions() -> None:
    layer = nn.Conv2d(1, 1, 1)
    assert columns(layer, torch.zeros(1, 1, 300, 300)).shape[-1] == 100 * 100


@pytest.mark.parametrize(("kind", "how"), product(LAYERS, ("nearest", "mse", "gptq")))
def test_a_rounded_weight_is_what_rounding_to_nearest_finds_again(kind: Kind, how: Rounding) -> None:
    layer = LAYERS[kind]
    sums = InputSums(layer)
    layer(inputs_of(layer))
    sums.close()
    for name, storage in storages_of(layer).items():
        weight = layer.weight.detach()
        once = rounded(layer, weight, storage, how, sums)
        again = rounded(layer, once, storage, "nearest", None)
        torch.testing.assert_close(again, once, atol=1e-6, rtol=1e-6, msg=name)
        # And it is not what it was: a rounding that does nothing would pass.
        assert storage.bits == 8 or not torch.allclose(once, weight, atol=1e-3)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_way_of_rounding_loses_less_than_the_one_before(kind: Kind) -> None:
    layer = LAYERS[kind]
    x = inputs_of(layer)
    sums = InputSums(layer)
    layer(x)
    sums.close()
    inputs = columns(layer, x)
    for name, storage in storages_of(layer).items():
        if kind == "depthwise" and storage.entries:
            continue  # nine weights a product and a few values for all: nothing is left to make good with
        errors = []
        for how in ("nearest", "mse", "gptq"):
            made = rounded(layer, layer.weight.detach(), storage, how, sums)
            errors.append(float((torch.bmm(as_matrices(layer, made - layer.weight), inputs) ** 2).mean()))
        assert errors[2] < (1.0 if kind == "depthwise" else 0.9) * errors[0], name


def test_with_independent_inputs_nothing_can_be_made_good() -> None:
    weight = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(1))
    grid = widest(weight, memberships((6, 10), (6, 1))[None], 7)
    hessian = torch.eye(10, dtype=torch.float64)[None]
    torch.testing.assert_close(compensated(weight, hessian, grid), grid.nearest(weight))


def test_inputs_that_are_always_zero_are_no_obstacle() -> None:
    weight = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(1))
    grid = widest(weight, memberships((6, 10), (6, 1))[None], 7)
    made = compensated(weight, torch.zeros(1, 10, 10, dtype=torch.float64), grid)
    torch.testing.assert_close(made, grid.nearest(weight))


def test_a_clipping_grid_pays_for_an_outlier_that_nothing_multiplies() -> None:
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    weight[0, 5] = 8.0
    members, importance = memberships((1, 64), (1, 1)), torch.ones(1, 64)
    importance[0, 5] = 0
    wide, fine = widest(weight, members, 7), least_squares(weight, members, 7, importance)
    assert fine.scales < 0.6 * wide.scales
    assert wide.scales == 8.0 / 7
    assert fine.nearest(weight)[0, 5] == 7 * fine.scales


def test_zeros_stay_zeros() -> None:
    layer = nn.Linear(4, 2)
    storage = WeightStorage(4, (2, 1), levels=7)
    assert not rounded(layer, torch.zeros(2, 4), storage, "mse", None).any()


def test_anchors_stay_where_they_are_for_equal_magnitudes() -> None:
    grid = widest(torch.tensor([[1.0, -1.0], [0.0, 0.0]]), memberships((2, 2), (2, 1)), 7)
    assert grid.anchors.tolist() == [[True, False], [False, False]]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(10, 12)
        self.first = nn.Linear(12, 16)
        self.kept = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 16)
        self.last = nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.kept(torch.relu(self.first(self.table(ids))))))
        return out


STORED = ("table", "first", "unused", "last")
CASES = [(torch.randint(0, 10, (1, 40), generator=torch.Generator().manual_seed(seed)),) for seed in range(4)]


def adjusted(how: Rounding, bias: bool = False, stored: tuple[str, ...] = STORED) -> tuple[Net, tuple[str, ...]]:
    net = Net().eval()
    shapes = {path: tuple(net.get_parameter(f"{path}.weight").shape) for path in stored}
    storages = {path: WeightStorage(4, per_channel(shape), 7) for path, shape in shapes.items()}
    scheme = QuantScheme("int4", "float32", rounding=how, bias_correction=bias)
    return net, adjust_weights(net, scheme, storages, CASES)


def error(net: Net, cases: list[tuple[Tensor]]) -> Tensor:
    with torch.no_grad():
        return torch.cat([net(*case) - Net()(*case) for case in cases], 1)


def test_layers_are_adjusted_in_order_of_use_and_others_stay() -> None:
    net, changed = adjusted("gptq")
    assert changed == ("table", "first", "last")
    before = Net()
    assert torch.equal(net.kept.weight, before.kept.weight)
    assert torch.equal(net.unused.weight, before.unused.weight)
    assert not torch.equal(net.last.weight, before.last.weight)


def test_compensation_carries_over_to_unseen_inputs() -> None:
    unseen = [(torch.randint(0, 10, (1, 200), generator=torch.Generator().manual_seed(99)),)]
    by_scale, by_error = (float((error(adjusted(how)[0], unseen) ** 2).mean()) for how in ("mse", "gptq"))
    assert by_error < 0.7 * by_scale


def test_bias_correction_takes_a_layers_own_mean_error_away() -> None:
    def stored_last(bias: bool) -> Net:
        net, _ = adjusted("gptq", bias, ("last",))
        plain, _ = adjusted("gptq", stored=("last",))
        # As the target will store it.
        net.last.weight = plain.last.weight
        return net

    wrong, right = (float(error(stored_last(bias), CASES).mean(dim=(0, 1)).abs().max()) for bias in (False, True))
    assert right < 0.01 * wrong


def test_bias_correction_alone_leaves_weights_to_the_target() -> None:
    net, _ = adjusted("nearest", bias=True)
    assert torch.equal(net.first.weight, Net().first.weight)
    assert not torch.equal(net.first.bias, Net().first.bias)


def test_the_same_inputs_give_the_same_weights() -> None:
    one, other = adjusted("gptq", bias=True)[0], adjusted("gptq", bias=True)[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_layers_with_derived_weights_are_left_to_the_target() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].__class__ = FourConv2d
    assert [path for path, _ in products(net)] == ["0"]


def test_batches_end_where_memory_does() -> None:
    layers: list[tuple[str, nn.Conv2d | nn.Linear]] = [(str(n), nn.Linear(n, 1)) for n in (4, 12000, 12000, 4)]
    assert [[path for path, _ in batch] for batch in batches(layers)] == [["4", "12000"], ["12000", "4"]]
    many: list[tuple[str, nn.Conv2d | nn.Linear]] = [(str(n), nn.Linear(2, 1)) for n in range(20)]
    assert [len(batch) for batch in batches(many)] == [16, 4]
