"""The weights of a component, each rounded as the scheme asks, in the order in which they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.targets.observers import portions
from md_export.targets.quantization.gptq import InputSums, as_matrices, products, rounded

# Of sums of inputs that are held at once; layers beyond wait for the next pass over the calibration inputs.
_MOST_BYTES: Final = 2 << 30
# Fewer layers see more truly what the rounded ones before them make, and cost more passes.
_MOST_LAYERS: Final = 16

Inputs = tuple[Tensor, ...]
Product = nn.Conv2d | nn.Linear
Layer = Product | nn.Embedding


@torch.no_grad()
def adjust_weights(
    module: nn.Module,
    scheme: QuantScheme,
    storages: Mapping[str, WeightStorage],
    calibration: Sequence[Inputs],
) -> tuple[str, ...]:
    """Change weights and biases in place as ``scheme.rounding`` and ``scheme.bias_correction`` ask.

    Layers are taken in order of use and in batches whose sums of inputs fit into memory; each batch sees its inputs as
    the rounded layers before it make them. Embeddings are rounded for the least squared error of their rows.

    Args:
        module: eval mode, float32.
        storages: how the target will store the weight of each module, by path; others stay unchanged.
        calibration: positional inputs of the module, one tuple per case.

    Returns:
        Paths of the modules whose weight or bias changed, in order of use.
    """
    changed = list(_embeddings(module, scheme, storages))
    for batch in batches(_in_order_of_use(module, storages, calibration[0])):
        sums = {path: InputSums(layer) for path, layer in batch}
        for inputs in calibration:
            module(*inputs)
        for path, layer in batch:
            sums[path].close()
            _adjust(layer, storages[path], scheme, sums[path])
            changed.append(path)
    return tuple(changed)


@dataclass(frozen=True)
class Stored:
    """Weight and bias of a layer once it is stored; ``bias`` unchanged or corrected, None where the layer has none."""

    weight: Tensor
    bias: Tensor | None


def stored_values(layer: Layer, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None) -> Stored:
    """A layer's weight rounded, and its bias corrected where the scheme asks; the layer is not changed.

    Without ``sums`` of its inputs no error can be made good and no bias corrected.
    """
    weight = rounded(layer, layer.weight, storage, scheme.rounding, sums)
    bias = None if isinstance(layer, nn.Embedding) else layer.bias
    if scheme.bias_correction and sums is not None and bias is not None:
        error = as_matrices(layer, layer.weight - weight).double()
        bias = (bias.double() + (error @ sums.mean[..., None]).flatten()).float()
    return Stored(weight, bias)


def _adjust(layer: Layer, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None) -> None:
    values = stored_values(layer, storage, scheme, sums)
    if scheme.rounding != "nearest":
        layer.weight = nn.Parameter(values.weight, requires_grad=False)
    if values.bias is not None and not isinstance(layer, nn.Embedding):
        layer.bias = nn.Parameter(values.bias, requires_grad=False)


def _embeddings(module: nn.Module, scheme: QuantScheme, storages: Mapping[str, WeightStorage]) -> Iterator[str]:
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Embedding) and path in storages and scheme.rounding != "nearest":
            _adjust(layer, storages[path], scheme, None)
            yield path


def _in_order_of_use(
    module: nn.Module, storages: Mapping[str, WeightStorage], inputs: Inputs
) -> list[tuple[str, Product]]:
    order: dict[str, Product] = {}
    handles = [
        layer.register_forward_pre_hook(_noting(order, path, layer))
        for path, layer in products(module)
        if path in storages
    ]
    module(*inputs)
    for handle in handles:
        handle.remove()
    return list(order.items())


def _noting(order: dict[str, Product], path: str, layer: Product) -> Callable[[nn.Module, object], None]:
    def note(_: nn.Module, __: object) -> None:
        order.setdefault(path, layer)

    return note


def batches(layers: list[tuple[str, Product]]) -> Iterator[list[tuple[str, Product]]]:
    """Neighbours whose sums of inputs fit into memory together."""
    shapes = [as_matrices(layer, layer.weight).shape for _, layer in layers]
    sizes = [groups * size * size * 8 for groups, _, size in shapes]
    return portions(zip(layers, sizes, strict=True), _MOST_BYTES, _MOST_LAYERS)
