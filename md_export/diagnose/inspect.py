"""Count parameters, multiply-adds and layers of each component and compare them with the paper; needs no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from md_export.checkpoint import build_on_meta
from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.graph import Component
from md_export.spec.names import DEFAULT_FAMILY

CONVENTION: Final = (
    "1 MAC = one multiply-add (the paper's 'GFLOPs'), attention products included, batch 1, one call, no guidance; "
    "counted with the convolution taps that fall on zero padding, and without them"
)


@dataclass(frozen=True)
class ComponentFigures:
    """One component: parameters, multiply-adds of one call at batch 1, and its layers.

    ``conv_blocks``, ``self_attentions`` and ``cross_attentions`` count layers of the denoiser; 0 for other components.
    """

    name: str
    parameters: int
    macs: int
    macs_without_padding: int
    conv_blocks: int = 0
    self_attentions: int = 0
    cross_attentions: int = 0


@dataclass(frozen=True)
class PaperFigure:
    """One number that arXiv 2311.16567 publishes; ``value`` counts in multiples of ``unit``."""

    label: str
    component: str
    field: str
    value: float
    unit: float = 1.0


@dataclass(frozen=True)
class Comparison:
    """A published number and ours, both in the paper's unit."""

    label: str
    ours: float
    paper: float

    @property
    def percent(self) -> float:
        """Relative difference from the paper's number in percent, positive if ours is higher."""
        return 100.0 * (self.ours / self.paper - 1.0)


WHOLE: Final = "whole model"
_DECODERS: Final = (
    PaperFigure("lite decoder parameters, M", "vae_decoder", "parameters", 9.8, 1e6),
    PaperFigure("decoder parameters, M", "vae_decoder", "parameters", 39.3, 1e6),
)
# By architecture; for MD-Lite the paper gives only the layers.
PAPER: Final[Mapping[str, tuple[PaperFigure, ...]]] = {
    "md": (
        PaperFigure("UNet parameters, M", "unet", "parameters", 386, 1e6),
        PaperFigure("UNet GMAC", "unet", "macs", 182, 1e9),
        PaperFigure("UNet GMAC without padding taps", "unet", "macs_without_padding", 182, 1e9),
        PaperFigure("UNet conv blocks", "unet", "conv_blocks", 11),
        PaperFigure("UNet self-attention layers", "unet", "self_attentions", 15),
        PaperFigure("UNet cross-attention layers", "unet", "cross_attentions", 18),
        *_DECODERS,
        PaperFigure("whole model parameters, M", WHOLE, "parameters", 520, 1e6),
    ),
    "md-lite": (
        PaperFigure("UNet conv blocks", "unet", "conv_blocks", 11),
        PaperFigure("UNet self-attention layers", "unet", "self_attentions", 12),
        PaperFigure("UNet cross-attention layers", "unet", "cross_attentions", 15),
        *_DECODERS,
    ),
    "sd15": (
        PaperFigure("UNet GMAC", "unet", "macs", 392, 1e9),
        PaperFigure("UNet GMAC without padding taps", "unet", "macs_without_padding", 392, 1e9),
    ),
}
# Module paths in our classes and in diffusers' classes.
_CONV_BLOCK: Final = re.compile(r"(^|\.)resnets\.\d+$")


@dataclass(frozen=True)
class Inspection:
    """Result of :func:`inspect_config`; ``components`` in the order of COMPONENTS, then an adapter or a ControlNet.

    ``family``: key of :data:`PAPER` that a checkpoint without a name is compared with.
    """

    components: tuple[ComponentFigures, ...]
    family: str = "md"

    @property
    def whole(self) -> ComponentFigures:
        """Sums over all components, each called once."""
        sums = (
            sum(getattr(figures, field) for figures in self.components)
            for field in ("parameters", "macs", "macs_without_padding")
        )
        return ComponentFigures(WHOLE, *sums)

    def compare(self, arch: str = "md") -> tuple[Comparison, ...]:
        """Return each number published for ``arch`` beside ours.

        The paper has two decoders; the comparison uses the one nearer in size. Another MobileDiffusion than
        the paper lists is compared with its full-size one, another family's ``arch`` with nothing.
        """
        figures = {one.name: one for one in (*self.components, self.whole)}
        rows = [
            (paper, getattr(figures[paper.component], paper.field) / paper.unit)
            for paper in PAPER.get(arch, PAPER["md"] if self.family == DEFAULT_FAMILY else ())
        ]
        decoders = [(paper, ours) for paper, ours in rows if paper.component == "vae_decoder"]
        farther = max(decoders, key=lambda row: abs(math.log(row[1] / row[0].value)), default=(None,))[0]
        return tuple(Comparison(paper.label, ours, paper.value) for paper, ours in rows if paper is not farther)


def inspect_config(config: ModelConfig) -> Inspection:
    """Return the figures of every component of ``config``, computed on the meta device."""
    config.check()
    family = family_of(config)
    # The paper's figures do not include the encoder.
    optional = [row for row in family.components if row.optional and row.name != family.encoded.node]
    rows = (*family.required, *(row for row in optional if row.needed(config)))
    figures = tuple(_figures(row, config, row.name == family.denoised.node) for row in rows)
    return Inspection(figures, family.form.name)


def _figures(component: Component, config: ModelConfig, counts_layers: bool) -> ComponentFigures:
    module = build_on_meta(component, config).to("meta")
    specs = component.input_specs(config)
    inputs = [torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta") for spec in specs]
    macs, padding = count_macs(module, *inputs)
    paths = [path for path, _ in module.named_modules()] if counts_layers else []
    return ComponentFigures(
        component.name,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs,
        macs_without_padding=macs - padding,
        conv_blocks=sum(_CONV_BLOCK.search(path) is not None for path in paths),
        self_attentions=sum(path.endswith(".attn1") for path in paths),
        cross_attentions=sum(path.endswith(".attn2") for path in paths),
    )


def count_macs(module: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Return the multiply-adds of one call, and how many of them multiply a convolution's zero padding."""
    padding = 0

    def add_padding(layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        nonlocal padding
        if isinstance(layer, nn.Conv2d):
            padding += _padding_macs(layer, args[0], out)

    hook = register_module_forward_hook(add_padding)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            module(*inputs)
    finally:
        hook.remove()
    return counter.get_total_flops() // 2, padding


def _padding_macs(conv: nn.Conv2d, x: Tensor, out: Tensor) -> int:
    per_tap = out.shape[0] * conv.out_channels * (conv.in_channels // conv.groups)
    all_taps = math.prod(out.shape[2:]) * math.prod(conv.kernel_size)
    real_taps = math.prod(_real_taps(conv, axis, x.shape[2 + axis], out.shape[2 + axis]) for axis in (0, 1))
    return int(per_tap * (all_taps - real_taps))


def _real_taps(conv: nn.Conv2d, axis: int, size_in: int, size_out: int) -> int:
    """Count the taps along one axis, over all output positions, that fall inside the input."""
    assert not isinstance(conv.padding, str)  # noqa: S101 (our modules pad by numbers)
    offset, stride, dilation = conv.padding[axis], conv.stride[axis], conv.dilation[axis]
    return sum(
        0 <= position * stride - offset + tap * dilation < size_in
        for position in range(size_out)
        for tap in range(conv.kernel_size[axis])
    )
