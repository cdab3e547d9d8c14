"""Small random models of diffusers and transformers, shaped as Stable Diffusion's, with the calls of a component."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from md_export.spec.sampler import OneStep
from md_export.spec.tensors import TensorSpec
from rewrites.forms import Subject

TEXT: Final = 24  # channels of the text
STEP: Final = OneStep(999, 14.64881, -14.61464, 0.18215, "epsilon")


class Denoise(nn.Module):
    """A component's calls and answer for UNet2DConditionModel."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, *inputs: Tensor) -> Tensor:
        """``sample[, timestep], encoder_hidden_states``."""
        out: Tensor = self.unet(*inputs, return_dict=False)[0]
        return out


class Decode(nn.Module):
    """The decoding half of AutoencoderKL."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        out: Tensor = self.vae.decode(latent, return_dict=False)[0]
        return out


class Encode(nn.Module):
    """CLIPTextModel up to its last hidden state."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor) -> Tensor:
        made = self.clip(input_ids)
        out: Tensor = made if isinstance(made, Tensor) else made.last_hidden_state
        return out


def unet(linear: bool = False, **more: Any) -> Any:
    """Two levels, attention on the inner one and in the middle; ``linear`` projections as in Stable Diffusion 2."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT,
        "attention_head_dim": (2, 8) if linear else 4,  # the number of heads, whatever it is called
        "norm_num_groups": 8,
        "use_linear_projection": linear,
    }
    return diffusers.UNet2DConditionModel(**(config | more))


def vae() -> Any:
    """Two levels, attention in the middle."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
    )


def clip() -> Any:
    """Two layers of two heads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens: dict[str, int] = {"vocab_size": 600, "bos_token_id": 0, "eos_token_id": 2}
    size: dict[str, int] = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32}
    config: dict[str, Any] = tokens | size | {"num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(**config))


def trained(module: nn.Module) -> nn.Module:
    """Affines of norms as training leaves them, none of them 1 and 0."""
    for norm in (layer for layer in module.modules() if isinstance(layer, (nn.LayerNorm, nn.GroupNorm))):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
    return module.eval().requires_grad_(False)


def fresh_subject(name: str) -> Subject:
    """A copy of :func:`subject` that may be changed."""
    made = subject(name).fresh()
    return replace(made, arrays={key: array.copy() for key, array in made.arrays.items()})


@cache
def subject(name: str) -> Subject:
    """``sd1`` and ``sd2``, the UNets; ``vae``, the decoder; ``clip``, the text encoder."""
    torch.set_num_threads(1)
    torch.manual_seed(7)
    if name == "clip":
        ids = torch.randint(0, 600, (1, 77), dtype=torch.int32)
        return _subject("text_encoder", Encode(trained(clip())), {"input_ids": ids})
    if name == "vae":
        return _subject("vae_decoder", Decode(trained(vae())), {"latent": torch.randn(1, 4, 8, 12)})
    given = {"sample": torch.randn(1, 4, 8, 12), "timestep": torch.full((1,), 999.0)}
    given["encoder_hidden_states"] = torch.randn(1, 77, TEXT)
    return _subject("unet", Denoise(trained(unet(linear=name == "sd2"))), given)


def _subject(component: str, module: nn.Module, given: dict[str, Tensor]) -> Subject:
    with torch.inference_mode():
        expected = module(*given.values()).numpy()
    arrays = {key: value.numpy() for key, value in given.items()}
    inputs = tuple(TensorSpec(key, array.shape, array.dtype.name) for key, array in arrays.items())
    return Subject(component, module, inputs, (TensorSpec("out", expected.shape, "float32"),), arrays, expected, STEP)


def model(case: Subject) -> Any:
    """The library's own module inside ``case``."""
    (inner,) = case.module.children()
    return inner


def rewrite(case: Subject, *names: str) -> dict[str, int]:
    """Apply to the library's module; how often each fired."""
    records = replace(case, module=model(case)).rewrite(*names)
    assert all(record.exact for record in records)
    return {record.name: record.fired for record in records}
