"""Models that the paper is compared with, on the meta device: shapes and no weights, seconds and no downloads.

    python benchmarks/peers.py

writes ``md_export/diagnose/estimate/peers.json``: what those with published latencies compute and move, by operation.
Each architecture is built by diffusers or transformers from the numbers below.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

import md_export
from md_export.checkpoint import build_on_meta
from md_export.checkpoint.architectures import arch_config
from md_export.models.families import COMPONENTS
from md_export.targets.operations import OpCost
from recorded_operations import record

FILE: Final = Path(md_export.__file__).parent / "diagnose" / "estimate" / "peers.json"
LATENT, TEXT = 64, 77
# Its classes have few types.
_LIBRARY: Final[Any] = diffusers

# runwayml/stable-diffusion-v1-5, unet/config.json; arXiv 2112.10752.
SD15: Final[Mapping[str, Any]] = {
    "sample_size": LATENT,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
}
# stabilityai/stable-diffusion-2-1-base, unet/config.json: heads of 64 channels, OpenCLIP's text of width 1024.
SD21: Final = {
    **SD15,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
# stabilityai/stable-diffusion-xl-base-1.0, unet/config.json; arXiv 2307.01952.
SDXL: Final[Mapping[str, Any]] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
# nota-ai/bk-sdm-base, unet/config.json; arXiv 2305.15798.
BK_SDM_BASE: Final = {**SD15, "layers_per_block": 1}
# Table 3 of arXiv 2306.00980 (SnapFusion), in the nearest form that diffusers can build: no attention in the outer
# levels; Down-3 with one ResNet block; Up-1 with two, three transformer blocks each. The table does not say how the
# ResNet blocks in the middle are joined, and it has two transformer blocks on one ResNet block in Down-3, here one.
SNAPFUSION: Final = {
    **SD15,
    "layers_per_block": (2, 2, 1, 1),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2, 1),
    "reverse_transformer_layers_per_block": (1, 3, 1, 1),
}
# facebook/DiT-XL-2-512, transformer/config.json; arXiv 2212.09748.
DIT_XL_2: Final[Mapping[str, Any]] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": LATENT,
    "patch_size": 2,
    "norm_type": "ada_norm_zero",
    "num_embeds_ada_norm": 1000,
}
# runwayml/stable-diffusion-v1-5, vae/config.json; SnapFusion's decoder has half of the channels (section 3.2).
VAE_CHANNELS: Final = (128, 256, 512, 512)
SNAPFUSION_VAE_CHANNELS: Final = (64, 128, 256, 256)
# stabilityai/stable-diffusion-2-1-base, text_encoder/config.json.
OPEN_CLIP: Final[Mapping[str, Any]] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}


@dataclass(frozen=True)
class Peer:
    """A module on the meta device and the arguments of one call at batch 1."""

    module: nn.Module
    inputs: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def unet(config: Mapping[str, Any], batch: int = 1, latent: int = LATENT) -> Peer:
    """A ``UNet2DConditionModel`` for one step of ``batch`` pictures."""
    text = shaped(batch, TEXT, config["cross_attention_dim"])
    added = {"text_embeds": shaped(batch, 1280), "time_ids": shaped(batch, 6)}
    named = {"added_cond_kwargs": added} if "addition_embed_type" in config else {}
    with torch.device("meta"):
        module = _evaluated(_LIBRARY.UNet2DConditionModel(**config))
    inputs = (shaped(batch, config["in_channels"], latent, latent), shaped(batch), text)
    return Peer(module, inputs, {**named, "return_dict": False})


def _evaluated(module: Any) -> nn.Module:
    assert isinstance(module, nn.Module)
    return module.eval()


class Decoder(nn.Module):
    """The half of an ``AutoencoderKL`` that makes pictures."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        with torch.device("meta"):
            vae = _LIBRARY.AutoencoderKL(
                latent_channels=4,
                block_out_channels=channels,
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * len(channels),
                up_block_types=("UpDecoderBlock2D",) * len(channels),
            )
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: Tensor) -> Tensor:
        picture: Tensor = self.decoder(self.post_quant_conv(latent))
        return picture


def decoder(channels: tuple[int, ...]) -> Peer:
    """Latent → 512×512 picture."""
    return Peer(Decoder(channels).eval(), (shaped(1, 4, LATENT, LATENT),), {})


def text_encoder(config: Mapping[str, Any]) -> Peer:
    """77 tokens → their embeddings."""
    with torch.device("meta"):
        module = _evaluated(CLIPTextModel(CLIPTextConfig(**config)))
    return Peer(module, (shaped(1, TEXT, dtype=torch.int64),), {})


def control_net() -> Peer:
    """lllyasviel/sd-controlnet-canny, config.json."""
    with torch.device("meta"):
        widths = (320, 640, 1280, 1280)
        built = _LIBRARY.ControlNetModel(
            in_channels=4, cross_attention_dim=768, attention_head_dim=8, block_out_channels=widths
        )
    module = _evaluated(built)
    inputs = (shaped(1, 4, LATENT, LATENT), shaped(1), shaped(1, TEXT, 768))
    return Peer(module, inputs, {"controlnet_cond": shaped(1, 3, 512, 512), "return_dict": False})


def transformer() -> Peer:
    """DiT-XL/2 for 512×512 pictures."""
    with torch.device("meta"):
        module = _evaluated(_LIBRARY.DiTTransformer2DModel(**DIT_XL_2))
    latent, labels = shaped(1, 4, LATENT, LATENT), shaped(1, dtype=torch.int64)
    return Peer(module, (latent,), {"timestep": labels, "class_labels": labels, "return_dict": False})


def clip_b_16() -> Peer:
    """OpenAI's CLIP ViT-B/16: a picture of 224×224 and one text."""
    config = CLIPConfig(
        text_config={"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12},
        vision_config={"patch_size": 16},
    )
    with torch.device("meta"):
        module = _evaluated(CLIPModel(config))
    return Peer(module, (shaped(1, TEXT, dtype=torch.int64), shaped(1, 3, 224, 224)), {})


def own(arch: str, component: str) -> Peer:
    """A component of MobileDiffusion as this package reconstructs it."""
    config, entry = arch_config(arch), COMPONENTS[component]
    inputs = [shaped(*spec.shape, dtype=getattr(torch, spec.dtype)) for spec in entry.input_specs(config)]
    return Peer(build_on_meta(entry, config).to("meta").eval(), tuple(inputs), {})


def shaped(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without values."""
    return torch.empty(shape, dtype=dtype, device="meta")


# With published latencies.
TIMED: Final[Mapping[str, Callable[[], Peer]]] = {
    "md/text_encoder": lambda: own("md", "text_encoder"),
    "md/unet": lambda: own("md", "unet"),
    "md/vae_decoder": lambda: own("md", "vae_decoder"),
    "sd15/unet": lambda: unet(SD15),
    "sd15/vae_decoder": lambda: decoder(VAE_CHANNELS),
    "snapfusion/unet": lambda: unet(SNAPFUSION),
    "snapfusion/vae_decoder": lambda: decoder(SNAPFUSION_VAE_CHANNELS),
    "sd21/text_encoder": lambda: text_encoder(OPEN_CLIP),
    "sd21/unet": lambda: unet(SD21),
    "sd21/unet, batch 2": lambda: unet(SD21, batch=2),
    "sdxl/unet, batch 2, 768": lambda: unet(SDXL, batch=2, latent=96),
    "sd15/controlnet": control_net,
    "clip-b-16": clip_b_16,
}


def summary(ops: tuple[OpCost, ...]) -> list[list[Any]]:
    """Equal operations together: work, multiply-adds, elements of weights and of activations, how many."""
    counted = Counter((op.work, op.macs, op.weight_bytes // 4, op.activation_bytes // 4) for op in ops)
    return [[*key, number] for key, number in sorted(counted.items())]


def main() -> None:
    peers = {}
    for name, build in TIMED.items():
        peer = build()
        peers[name] = summary(record(peer.module, peer.inputs, **peer.named))
        macs = sum(row[1] * row[-1] for row in peers[name])
        print(
            f"{name}: {peer.parameters / 1e6:.2f} M parameters, {macs / 1e9:.1f} GMAC, {len(peers[name])} kinds of ops"
        )
    rows = [f'  "{name}": {json.dumps(rows, separators=(",", ":"))}' for name, rows in peers.items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
