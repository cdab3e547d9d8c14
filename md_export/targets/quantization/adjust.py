"""Round the weights of a component by its scheme, in the order in which they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.targets.observers import portions
from md_export.targets.quantization.gptq import InputSums, as_matrices, products, rounded

# Limit of bytes for sums of inputs; further layers wait for the next pass over the calibration inputs.
_MOST_BYTES: Final = 2 << 30
# With fewer layers per pass, inputs are closer to those of the rounded model, at the cost of more passes.
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
    """Change weights and biases in place by ``scheme.rounding`` and ``scheme.bias_correction``.

    Layers are processed in order of use, in batches with sums of inputs that fit into memory; a batch's inputs come
    from the rounded layers before it. Embeddings are rounded for the least squared error of their rows.

    Args:
        module: eval mode, float32.
        storages: how the target will store the weight of each module, by path; other weights do not change.
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
    """Weight and bias of a layer as stored; ``bias`` is unchanged or corrected, None if the layer has none."""

    weight: Tensor
    bias: Tensor | None


def stored_values(layer: Layer, storage: WeightStorage, scheme: QuantScheme, sums: InputSums | None) -> Stored:
    """Return a layer's rounded weight, and its bias, corrected if the scheme requests it; the layer does not change.

    Without ``sums`` of its inputs, errors are not compensated and the bias is not corrected.
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
    """Group consecutive layers with sums of inputs that fit into memory together."""
    shapes = [as_matrices(layer, layer.weight).shape for _, layer in layers]
    sizes = [groups * size * size * 8 for groups, _, size in shapes]
    return portions(zip(layers, sizes, strict=True), _MOST_BYTES, _MOST_LAYERS)
