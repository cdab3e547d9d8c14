"""Whether the stored checkpoint survives int8: fake-quantizes UNet and decoder and prints the damage.

Weights per output channel, inputs of every convolution and linear layer per tensor (asymmetric,
range from other captions). Run from golden/nano: ``python -m training.int8_check``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from md_export.models.vae import VAEDecoder
from training.checkpoint import NANO, load_nano
from training.evaluate import held_out_scenes, load_stored_decoder, make, psnr, snr, to_pictures
from training.latents import SCALING_FACTOR
from training.model import Nano
from training.scenes import Scene

LAYERS = (nn.Conv2d, nn.Linear)
Ranges = dict[nn.Module, tuple[float, float]]


@contextmanager
def recorded(root: nn.Module) -> Iterator[Ranges]:
    """While open, notes the smallest and largest input of every layer of `root`."""
    ranges: Ranges = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        low, high = ranges.get(layer, (0.0, 0.0))
        ranges[layer] = (min(low, float(inputs[0].min())), max(high, float(inputs[0].max())))

    hooks = [layer.register_forward_pre_hook(note) for layer in root.modules() if isinstance(layer, LAYERS)]
    yield ranges
    for hook in hooks:
        hook.remove()


@contextmanager
def quantized(root: nn.Module, ranges: Ranges) -> Iterator[None]:
    """While open, layers of `root` compute with 8-bit weights and inputs."""
    layers = [layer for layer in root.modules() if isinstance(layer, LAYERS)]
    kept = [layer.weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.weight.data = _rounded_weight(layer.weight.data)
    hooks = [layer.register_forward_pre_hook(_rounding(*ranges[layer])) for layer in layers]
    yield
    for layer, weight, hook in zip(layers, kept, hooks, strict=True):
        layer.weight.data = weight
        hook.remove()


def _rounded_weight(weight: Tensor) -> Tensor:
    step = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).clamp(min=1e-8) / 127
    return (weight / step).round() * step


def _rounding(low: float, high: float):  # type: ignore[no-untyped-def]  # noqa: ANN202
    step = max(high - low, 1e-8) / 255

    def rounded(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return ((inputs[0].clamp(low, high) / step).round() * step, *inputs[1:])

    return rounded


@torch.no_grad()
def damage(model: Nano, decoder: VAEDecoder, seen: Sequence[Scene], asked: Sequence[Scene]) -> dict[str, float]:
    """SNR (dB) of UNet and decoder with int8 inside, PSNR (dB) of the pictures; ranges come from `seen`."""
    with recorded(model.unet) as unet_ranges, recorded(decoder) as decoder_ranges:
        make(model, decoder, seen, seed=1)
    plain = make(model, decoder, asked)
    decoded = decoder(plain.x0 / SCALING_FACTOR)
    with quantized(decoder, decoder_ranges):
        rough = decoder(plain.x0 / SCALING_FACTOR)
    with quantized(model.unet, unet_ranges), quantized(decoder, decoder_ranges):
        both = make(model, decoder, asked)
    largest = max(abs(edge) for span in (*unet_ranges.values(), *decoder_ranges.values()) for edge in span)
    return {
        "UNet x0 SNR, dB": snr(both.x0, plain.x0),
        "decoder SNR, dB": snr(rough, decoded),
        "decoder alone, picture PSNR, dB": psnr(to_pictures(rough), plain.pictures),
        "picture PSNR, dB": psnr(both.pictures, plain.pictures),
        "largest layer input": largest,
    }


def main() -> None:
    """Prints the damage to the parent and to each sibling as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=NANO)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    singles, pairs = held_out_scenes(48)
    decoder = load_stored_decoder(folder)
    for name in (None, "gelu", "relu"):
        scores = damage(
            load_nano(folder, name), decoder, [*singles[:48:3], *pairs[:16]], [*singles[1:96:2], *pairs[16:]]
        )
        print(json.dumps({"model": name or "parent", **scores}), flush=True)


if __name__ == "__main__":
    main()
