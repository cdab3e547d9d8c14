"""The same block written in several forms, as Core AI programs: operations, exactness, time in Apple's CPU runtime.

    python benchmarks/coreai_forms.py [float32|float16] [BLOCK ...]

Blocks have the full-size model's shapes and random weights: a transformer stack where its UNet is deepest and where it
is widest, norms, and a ResNet block. Each form computes the same function; *SNR dB* is against torch in float64. All
forms of a block are run in turn, one run each per round; *ms* is the median of the rounds. What a Neural Engine or a
GPU makes of a form, no runtime on a CPU tells.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.checkpoint.architectures import arch_config
from md_export.models.layers import Attention, ResnetBlock
from md_export.models.sampling.sampler import one_step
from md_export.models.unet import MDUNetConfig, TransformerStack
from md_export.parity.metrics import snr_db
from md_export.rewrites import REWRITES
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array, TensorSpec
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob

ROUNDS: Final = 5
MOVES: Final = ("reshape", "transpose", "concat", "split")
PRODUCTS: Final = ("conv2d", "batch_matmul", "broadcasting_batch_matmul")
Change = Callable[[nn.Module], None]


class Whole(nn.Module):
    """One block as the root of a module, so that a rewrite finds it below."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Tensor) -> Tensor:
        made: Tensor = self.block(*inputs)
        return made


class FusedAttention(Attention):
    """One call for all heads, which the converter keeps as one operation."""

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q = self._split_heads(self.to_q(x))
        k, v = self.keys_values(x if context is None else context, self._split_heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        merged: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return merged


class NormByHand(nn.LayerNorm):
    """Means, squares and a root over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


class ChannelsLast(nn.Module):
    """A layer on ``[B, C, H, W]`` with maps as ``[B, H, W, C]`` around it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return made


class LastResnet(ResnetBlock):
    """Of maps ``[B, H, W, C]`` from end to end."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:  # noqa: ARG002 (the layer's signature)
        hidden = x.permute(0, 2, 3, 1)
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            hidden = ChannelsLast(conv)(F.silu(ChannelsLast(norm)(hidden)))
        return hidden.permute(0, 3, 1, 2) + x


def rewritten(*names: str) -> Change:
    """By rewrites of md-export."""

    def change(module: nn.Module) -> None:
        for name in names:
            assert REWRITES[name].apply(module, one_step(arch_config("md"))), name

    return change


def becomes(old: type[nn.Module], new: type[nn.Module]) -> Change:
    def change(module: nn.Module) -> None:
        found = [layer for layer in module.modules() if type(layer) is old]
        assert found
        for layer in found:
            layer.__class__ = new

    return change


def as_it_is(_: nn.Module) -> None:
    """The model's own form."""


@dataclass(frozen=True)
class Block:
    """``make`` builds it, ``shapes`` are its inputs', ``forms`` change a copy in place."""

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    forms: dict[str, Change]


def stack(channels: int, size: int, self_attention: bool) -> Block:
    def make() -> nn.Module:
        config = arch_config("md").denoiser
        assert isinstance(config, MDUNetConfig)
        return TransformerStack(config, channels, 1, self_attention)

    forms = {
        "linear, products and softmax": as_it_is,
        "linear, fused attention": becomes(Attention, FusedAttention),
        "linear, layer norm by hand": becomes(nn.LayerNorm, NormByHand),
        "linear_to_conv2d": rewritten("linear_to_conv2d"),
        "linear_to_conv2d, split_attention_heads": rewritten("linear_to_conv2d", "split_attention_heads"),
        "tokens_to_maps": rewritten("tokens_to_maps"),
    }
    return Block(make, ((1, channels, size, size), (1, 77, 768)), forms)


def group_norm(channels: int, size: int) -> Block:
    forms = {
        "group norm": as_it_is,
        "staged_group_norm": rewritten("staged_group_norm"),
        "group_norm_to_instance_norm": rewritten("group_norm_to_instance_norm"),
    }
    return Block(lambda: nn.GroupNorm(32, channels), ((1, channels, size, size),), forms)


BLOCKS: Final = {
    "self- and cross-attention, 1024 at 16×16": stack(1024, 16, True),
    "cross-attention, 640 at 32×32": stack(640, 32, False),
    "group norm, 320 at 64×64": group_norm(320, 64),
    "group norm, 128 at 256×256": group_norm(128, 256),
    "layer norm, 1024 at 256 tokens": Block(
        lambda: nn.LayerNorm(1024),
        ((1, 256, 1024),),
        {"layer norm": as_it_is, "by hand": becomes(nn.LayerNorm, NormByHand)},
    ),
    "ResNet block, 320 at 64×64": Block(
        lambda: ResnetBlock(320, 320, 32, 1e-5, None),
        ((1, 320, 64, 64),),
        {"[B, C, H, W]": as_it_is, "[B, H, W, C] between": becomes(ResnetBlock, LastResnet)},
    ),
}


@dataclass(frozen=True)
class Made:
    """One form, saved and loaded."""

    runner: Any
    ops: Counter[str]

    def counts(self) -> tuple[int, int, int, int]:
        """All operations, products, softmaxes and fused attentions, those that only move data."""
        attention = self.ops["softmax"] + self.ops["scaled_dot_product_attention"]
        groups = (PRODUCTS, MOVES)
        products, moves = (sum(self.ops[kind] for kind in group) for group in groups)
        return self.ops.total(), products, attention, moves


def fresh(block: Block) -> nn.Module:
    """The same weights each time, norms' affines too."""
    torch.manual_seed(0)
    module = Whole(block.make()).eval().requires_grad_(False)
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            nn.init.normal_(layer.weight, 1.0, 0.1)
            nn.init.normal_(layer.bias, 0.0, 0.1)
    return module


def exported(module: nn.Module, given: dict[str, Array], shape: tuple[int, ...], dtype: Any, folder: Path) -> Made:
    coreai = TARGETS["coreai"].open()
    inputs = tuple(TensorSpec(name, value.shape, "float32") for name, value in given.items())
    outputs = (TensorSpec("out", shape, "float32"),)
    job = LoweringJob("block", module, inputs, outputs, given, QuantScheme(dtype, dtype), (), folder)
    path = folder / "block.aimodel"
    coreai.lower(job).quantize(job).save(path)
    ops = Counter(coreai.describe(path).ops)
    del ops["output"]
    return Made(coreai.load(path), ops)


def measured(block: Block, dtype: str, scratch: Path) -> list[tuple[str, Made, float, float]]:
    """Per form: what it is, SNR in dB, milliseconds."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(shape, generator=generator) for shape in block.shapes]
    with torch.no_grad():
        exact = fresh(block).double()(*(value.double() for value in drawn)).numpy()
    given, forms = {f"x{number}": value.numpy() for number, value in enumerate(drawn)}, {}
    for number, (name, change) in enumerate(block.forms.items()):
        module, folder = fresh(block), scratch / str(number)
        folder.mkdir()
        change(module)
        forms[name] = exported(module, given, exact.shape, dtype, folder)
    # The first run of a program is its slowest.
    found = {name: snr_db(made.runner.run(given)["out"], exact) for name, made in forms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, made in forms.items():
            start = time.perf_counter()
            made.runner.run(given)
            seconds[name].append(time.perf_counter() - start)
    return [(name, made, found[name], 1e3 * median(seconds[name])) for name, made in forms.items()]


def main(dtype: str, names: list[str]) -> None:
    print(f"| block, {dtype} | form | ops | products | softmax | moves | SNR dB | ms |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, block in BLOCKS.items():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            for form, made, db, took in measured(block, dtype, Path(scratch)):
                counts = " | ".join(map(str, made.counts()))
                print(f"| {name} | {form} | {counts} | {db:.1f} | {took:,.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "float32", sys.argv[2:])
