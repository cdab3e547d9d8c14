"""Recognize files that are not a whole Stable Diffusion model by the names of their tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from md_export.checkpoint.lora_names import read_name

# Part of a name, and the model that has it; the first one found decides. The names are from the models' code and
# diffusers' loaders/single_file_utils.py.
_MODELS: Final = (
    ("edm_mean", "Playground 2.5"),
    ("edm_vpred.sigma_max", "CosXL"),
    ("conditioner.embedders.0.model.", "the refiner of Stable Diffusion XL"),
    ("noise_augmentor.", "Stable unCLIP"),
    ("low_scale_model.", "Stable Diffusion's upscaler"),
    (".time_stack.", "Stable Video Diffusion"),
    ("joint_blocks.0.", "Stable Diffusion 3"),
    ("text_encoders.t5xxl.", "a model with T5, such as Stable Diffusion 3 or FLUX"),
    ("txt_in.individual_token_refiner.", "Hunyuan Video"),
    ("double_stream_modulation_img.", "FLUX.2"),
    ("single_stream_modulation.", "FLUX.2"),
    ("distilled_guidance_layer.", "Chroma"),
    ("double_blocks.0.img_attn", "FLUX"),
    ("double_layers.0.attn.w1q", "AuraFlow"),
    ("clip_txt_mapper.", "Stable Cascade"),
    (".channelwise.0.", "Stable Cascade"),
    ("x_pad_token", "Z-Image"),
    ("cap_embedder.", "Lumina 2"),
    ("attention_y_norm.", "SANA"),
    ("y_embedder.embedding_table", "DiT"),
    ("t_block.1.", "PixArt"),
    ("mlp_t5.", "Hunyuan-DiT"),
    ("head.modulation", "Wan"),
    ("patchify_proj.", "LTX-Video"),
    (".attn.qkv_x.", "Mochi"),
    ("net.x_embedder.", "Cosmos"),
    ("double_stream_blocks.0.", "HiDream"),
    (".txt_mod.1.", "Qwen-Image"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("motion_modules.", "a motion module (AnimateDiff)"),
    ("image_proj.", "an IP-Adapter"),
    ("string_to_param", "a textual inversion"),
    ("emb_params", "a textual inversion"),
    ("text_encoders.", "Stable Diffusion 3, or another model with its text encoders"),
)
# Names in a file with only one part of a model.
_PARTS: Final = (
    ("down_blocks.0.resnets.0.conv1.weight", "a UNet alone, as diffusers names it: put it into unet/ of a folder"),
    ("input_blocks.0.0.weight", "the UNet of a Stable Diffusion alone"),
    ("decoder.conv_in.weight", "a VAE alone"),
    ("encoder.conv_in.weight", "a VAE's encoder alone"),
    ("text_model.embeddings.token_embedding.weight", "a text encoder alone"),
    ("token_embedding.weight", "a text encoder alone"),
)
_STARTS: Final = ("", "model.diffusion_model.", "diffusion_model.", "first_stage_model.", "vae.")


def other_model(names: Collection[str]) -> str | None:
    """Return the kind of model that the names belong to, if it is not Stable Diffusion; None if unknown."""
    for mark, title in _MODELS:
        if any(mark in name for name in names):
            return title
    parsed = sum(read_name(name) is not None for name in names)
    return "a LoRA: give it with --lora" if parsed > len(names) // 2 else None


def lone_part(names: Collection[str]) -> str | None:
    """Return the only part of a model that a file contains; None if unknown."""
    bare = {name.removeprefix(start) for start in _STARTS for name in names}
    return next((title for name, title in _PARTS if name in bare), None)
