"""The nano checkpoint's three networks and their configurations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.models.vae import VAEConfig, VAEDecoder
from training.latents import SCALING_FACTOR
from training.tokenizer import MAX_LENGTH

TEXT_WIDTH = 128
#: The one step's time, and its a and b in x0 = a * x_T + b * v (see alpha_bar_last).
LAST_STEP = 999


def alpha_bar_last() -> float:
    """The product of 1 - beta over the scaled-linear schedule 0.00085..0.012, 1000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return float((1 - betas).prod())


def unet_config(activation: str = "swish", attention: str = "softmax") -> MDUNetConfig:
    """The UNet of the parent or of a sibling; widths are small, the structure is MobileDiffusion's."""
    return MDUNetConfig(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(48, 80, 96),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=16,
        norm_num_groups=8,
        time_embed_dim=64,
        ff_activation=activation,
        attention_kind=attention,
        down_layers=1,
        up_layers=1,
        sep_conv_expansion=3,
    )


def vae_config() -> VAEConfig:
    """The lite decoder: one ResNet block a level, no attention."""
    return VAEConfig(
        block_out_channels=(16, 24, 48, 64),
        layers_per_block=1,
        decoder_layers_per_block=1,
        mid_block_add_attention=False,
        norm_num_groups=8,
        scaling_factor=SCALING_FACTOR,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def text_config(vocabulary: int) -> CLIPTextConfig:
    """CLIP's text encoder with 3 layers of width 128; `vocabulary` tokens, the last two start and end."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        projection_dim=TEXT_WIDTH,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


class Nano(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, vocabulary: int, config: MDUNetConfig | None = None) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(text_config(vocabulary))
        self.unet = MDUNet(config or unet_config())
        self.noise_share = alpha_bar_last() ** 0.5
        self.v_share = (1 - alpha_bar_last()) ** 0.5

    def forward(self, ids: Tensor, noise: Tensor) -> Tensor:
        """Token ids [B, L] and noise [B, 8, 8, 8] -> x0 [B, 8, 8, 8]."""
        text = self.text_encoder(ids).last_hidden_state
        timestep = torch.full((1,), float(LAST_STEP))
        v = self.unet(noise, timestep, text)
        x0: Tensor = self.noise_share * noise - self.v_share * v.float()
        return x0


def load_decoder(path: Path) -> VAEDecoder:
    """A decoder with the weights saved by `python -m training.decoder`."""
    decoder = VAEDecoder(vae_config())
    decoder.load_state_dict(torch.load(path, weights_only=True)["weights"])
    return decoder.eval()
