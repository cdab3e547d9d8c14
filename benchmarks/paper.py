"""Table 1 of the MobileDiffusion paper (arXiv 2311.16567) beside what is counted here; no weights, no downloads.

    python benchmarks/paper.py

Counted: widths, ResNet or separable blocks, self- and cross-attention layers, parameters, and multiply-adds of one call
at batch 1, with the convolution taps on zero padding and, in brackets, without. Ours are built by this package, others
by diffusers from the numbers in ``peers.py``. A published figure that is not of the paper itself says whose it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from md_export.diagnose.inspect import CONVENTION, count_macs
from md_export.models.layers import Attention, ResnetBlock, SepConvBlock
from peers import BK_SDM_BASE, SD15, SDXL, SNAPFUSION, Peer, own, transformer, unet

HEADER = "| model | channels | conv blocks | SA + CA | parameters, M | GMAC | published | difference | |"
MD = "arXiv 2311.16567, table 1"


@dataclass(frozen=True)
class Counts:
    """Of one UNet or transformer."""

    blocks: int
    self_attentions: int
    cross_attentions: int
    parameters: float
    gmac: float
    gmac_without_padding: float


@dataclass(frozen=True)
class Published:
    """What others print; None where no figure is at hand."""

    parameters: float | None = None
    gmac: float | None = None
    blocks: int | None = None
    attentions: tuple[int, int] | None = None


@dataclass(frozen=True)
class Row:
    """``remark``: what stands between the published figures and ours."""

    name: str
    channels: str
    build: Callable[[], Peer]
    published: Published
    remark: str


ROWS = (
    Row(
        "MobileDiffusion",
        "320, 640, 1024",
        lambda: own("md", "unet"),
        Published(386, 182, 11, (15, 18)),
        f"{MD}; the layout is a reconstruction; the paper gives blocks and widths",
    ),
    Row(
        "MobileDiffusion-Lite",
        "320, 640, 896",
        lambda: own("md-lite", "unet"),
        Published(blocks=11, attentions=(12, 15)),
        "arXiv 2311.16567, table 6 gives the layers; other figures were not at hand",
    ),
    Row(
        "Stable Diffusion 1.5",
        "320, 640, 1280, 1280",
        lambda: unet(SD15),
        Published(860, 392),
        f"GMAC: {MD}; parameters: arXiv 2306.00980, table 1",
    ),
    Row(
        "UFOGen",
        "320, 640, 1280, 1280",
        lambda: unet(SD15),
        Published(gmac=392),
        "it is Stable Diffusion 1.5's UNet, trained otherwise (arXiv 2311.09257)",
    ),
    Row(
        "SnapFusion",
        "320, 640, 1280, 1280",
        lambda: unet(SNAPFUSION),
        Published(parameters=848),
        "arXiv 2306.00980, tables 1 and 3; not reproduced: the table does not say how the ResNet blocks in the middle "
        "are joined, and this is the nearest form that diffusers can build",
    ),
    Row(
        "BK-SDM-Base",
        "320, 640, 1280, 1280",
        lambda: unet(BK_SDM_BASE),
        Published(parameters=580),
        "parameters: its model card (Nota-NetsPresso/BK-SDM)",
    ),
    Row(
        "SDXL, 512×512 pictures",
        "320, 640, 1280",
        lambda: unet(SDXL, latent=64),
        Published(gmac=710),
        f"{MD}; not reproduced: neither this size nor that of the next row gives it",
    ),
    Row(
        "SDXL, 1024×1024 pictures",
        "320, 640, 1280",
        lambda: unet(SDXL, latent=128),
        Published(parameters=2567),
        "parameters: the model card of etri-vilab/koala-700m",
    ),
    Row("DiT-XL/2", "1152", transformer, Published(gmac=525), f"{MD}; self-attention only, text by class labels"),
)


class Called(nn.Module):
    """A module with its named arguments."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self.inner, self.named = peer.module, peer.named

    def forward(self, *inputs: Tensor) -> Any:
        return self.inner(*inputs, **self.named)


def counts(peer: Peer) -> Counts:
    """Of a peer's module."""
    modules = list(peer.module.modules())
    ours = [layer for layer in modules if isinstance(layer, Attention)]
    theirs = [layer for layer in modules if isinstance(layer, BasicTransformerBlock)]
    macs, padding = count_macs(Called(peer), *peer.inputs)
    return Counts(
        blocks=sum(isinstance(layer, (ResnetBlock, SepConvBlock, ResnetBlock2D)) for layer in modules),
        self_attentions=sum(layer.shares_kv for layer in ours) + len(theirs),
        cross_attentions=sum(not layer.shares_kv for layer in ours)
        + sum(getattr(layer, "attn2", None) is not None for layer in theirs),
        parameters=peer.parameters / 1e6,
        gmac=macs / 1e9,
        gmac_without_padding=(macs - padding) / 1e9,
    )


def cells(row: Row) -> tuple[str, ...]:
    """A line of the table."""
    found, paper = counts(row.build()), row.published
    pairs = [
        ("conv blocks", paper.blocks, float(found.blocks)),
        ("SA", paper.attentions and paper.attentions[0], float(found.self_attentions)),
        ("CA", paper.attentions and paper.attentions[1], float(found.cross_attentions)),
        ("M", paper.parameters, found.parameters),
        ("GMAC", paper.gmac, found.gmac),
        ("GMAC without padding", paper.gmac, found.gmac_without_padding),
    ]
    known = [(name, float(value), ours) for name, value, ours in pairs if value is not None]
    said = dict.fromkeys(f"{value:g} {name.removesuffix(' without padding')}" for name, value, _ in known)
    return (
        row.name,
        row.channels,
        str(found.blocks),
        f"{found.self_attentions} + {found.cross_attentions}",
        f"{found.parameters:.2f}",
        f"{found.gmac:.1f} ({found.gmac_without_padding:.1f})",
        ", ".join(said) or "-",
        ", ".join(f"{name} {100 * (ours / value - 1):+.1f} %" for name, value, ours in known) or "-",
        row.remark,
    )


def main() -> None:
    print(CONVENTION, "", HEADER, "|---|---|---:|---:|---:|---:|---|---|---|", sep="\n")
    for row in ROWS:
        print(f"| {' | '.join(cells(row))} |", flush=True)


if __name__ == "__main__":
    main()
