"""Named architectures: their configs, and checkpoints with random weights in diffusers' folder layout.

Both allow work at full size without trained weights.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from md_export.checkpoint import build_on_meta
from md_export.checkpoint.derived import RANDOM_NOTE
from md_export.checkpoint.random_tokenizer import write_json, write_tokenizer
from md_export.errors import OutputError, UsageError
from md_export.models.config import ModelConfig
from md_export.models.diffusers_unet import DiffusersUNetConfig, XLUNetConfig
from md_export.models.dit import DiTConfig
from md_export.models.families import family_of
from md_export.models.graph import Component
from md_export.models.pixart import PixArtConfig
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.solver import SolverConfig
from md_export.models.t5_encoder import LENGTHS, T5Config
from md_export.models.tiny_autoencoder import TINY_CLASS, TinyConfig
from md_export.models.unet import MDUNetConfig
from md_export.models.vae import VAEConfig
from md_export.system.files import refuse_existing, require_space, staging
from md_export.system.memory import installed_bytes

# The text model of openai/clip-vit-large-patch14.
CLIP_VIT_L_14: Final[Mapping[str, object]] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
# The text model of laion/CLIP-ViT-bigG-14-laion2B-39B-b160k.
OPENCLIP_BIG_G: Final[Mapping[str, object]] = {
    **CLIP_VIT_L_14,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
# Widths 128, 128, 256, 256 with two ResNet blocks per level and no attention give the paper's lite decoder of 9.8 M
# parameters. The scaling factor of its 8-channel latent is not published; 1 means no scaling.
LITE_VAE: Final = VAEConfig(
    latent_channels=8,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    decoder_block_out_channels=(128, 128, 256, 256),
    decoder_layers_per_block=2,
    mid_block_add_attention=False,
    scaling_factor=1.0,
)


def _md() -> ModelConfig:
    """Return MobileDiffusion (table 6), 512×512 pictures: UNet 386 M, whole model 520 M parameters."""
    return ModelConfig(text_encoder=CLIP_VIT_L_14, denoiser=MDUNetConfig(), vae=LITE_VAE)


def _md_lite() -> ModelConfig:
    """Return MD-Lite: innermost width 896, two transformer layers per block in Up-3."""
    unet = MDUNetConfig(block_out_channels=(320, 640, 896), up_layers=2)
    return replace(_md(), denoiser=unet)


def _sd15() -> ModelConfig:
    """Return Stable Diffusion 1.5 and 1.4: UNet 860 M, whole model 1,032 M parameters without the VAE encoder."""
    vae = VAEConfig(latent_channels=4, block_out_channels=(128, 256, 512, 512), scaling_factor=0.18215)
    return ModelConfig(text_encoder=CLIP_VIT_L_14, denoiser=DiffusersUNetConfig(cross_attention_dim=768), vae=vae)


def _sdxl() -> ModelConfig:
    """Return Stable Diffusion XL 1.0, 1024×1024 pictures: UNet 2,567 M, whole model 3,438 M parameters."""
    unet = XLUNetConfig(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
    )
    return replace(
        _sd15(),
        text_encoder_2=OPENCLIP_BIG_G,
        denoiser=unet,
        vae=replace(_sd15().vae, scaling_factor=0.13025),
        method="euler",
        zeros_for_empty=True,
    )


# Autoencoder of Stable Diffusion, and training schedule of the transformer models.
_SD_VAE: Final = VAEConfig(latent_channels=4, block_out_channels=(128, 256, 512, 512), scaling_factor=0.18215)
_LINEAR: Final = ScheduleConfig(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", steps_offset=0)


def _pixart() -> ModelConfig:
    """Return PixArt-α XL/2, 1024×1024 pictures: transformer 611 M, T5-XXL's encoder 4,762 M parameters."""
    text = T5Config(d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    schedule = replace(_LINEAR, timestep_spacing="linspace")
    return ModelConfig({}, PixArtConfig(), _SD_VAE, schedule, method="dpmpp_2m", t5=text)


def _dit() -> ModelConfig:
    """Return DiT-XL/2, 256×256 pictures: transformer 750 M parameters, with diffusers' embedder in each block."""
    schedule = replace(_LINEAR, set_alpha_to_one=True)
    return ModelConfig({}, DiTConfig(out_channels=8), _SD_VAE, schedule)


def _nano() -> ModelConfig:
    """Return nano, the checkpoint that ships with this package."""
    from md_export.checkpoint import read_config
    from md_export.spec.shipped_files import nano_checkpoint

    return read_config(nano_checkpoint())


ARCHS: Final[Mapping[str, Callable[[], ModelConfig]]] = {
    "md": _md,
    "md-lite": _md_lite,
    "sd15": _sd15,
    "sdxl": _sdxl,
    "pixart": _pixart,
    "dit": _dit,
    "nano": _nano,
}


def arch_config(name: str) -> ModelConfig:
    """Return the configs of a named architecture; raise :class:`UsageError` for an unknown name."""
    if name not in ARCHS:
        raise UsageError(f"unknown architecture {name!r}; use one of {', '.join(ARCHS)}")
    return ARCHS[name]()


DTYPES: Final[Mapping[str, torch.dtype]] = {"float16": torch.float16, "float32": torch.float32}
# Weight file of each folder, as transformers and diffusers name it.
FILES: Final[Mapping[str, str]] = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
# Fields that are written only if they differ from these values.
_ONLY_OF_LCM: Final = {"time_cond_proj_dim": None}
ONLY_FOR_SOME: Final = {
    **{field.name: field.default for field in dataclasses.fields(SolverConfig)},
    "rescale_betas_zero_snr": False,
    "original_inference_steps": 50,
    "shift": 1.0,
}


def init_checkpoint(out: Path, arch: str, seed: int, dtype: str = "float16") -> Path:
    """Write a random checkpoint of a named architecture; the same arguments write the same bytes.

    Each layer gets its default initialization. One component is in memory at a time.

    Args:
        out: folder to create.
        arch: a name in :data:`md_export.checkpoint.architectures.ARCHS`.
        seed: whole number, at least 0.
        dtype: type of the stored weights, ``float16`` or ``float32``.

    Raises:
        UsageError: unknown ``arch`` or ``dtype``, negative seed.
        OutputError: ``out`` exists, or cannot be written completely.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if seed < 0:
        raise UsageError(f"seed {seed} is negative; use 0 or a positive whole number")
    write_checkpoint(out, arch_config(arch), seed, dtype, {RANDOM_NOTE: {"seed": seed}})
    return out


def write_checkpoint(
    out: Path, config: ModelConfig, seed: int, dtype: str = "float16", more: Mapping[str, Mapping[str, object]] = {}
) -> None:
    """Write a random checkpoint of ``config``, as :func:`init_checkpoint`; ``more``: other JSON files, by name."""
    config.check()
    refuse_existing(out)
    counts, itemsize = _parameters(config), DTYPES[dtype].itemsize
    require_space(out, sum(counts.values()) * itemsize)
    largest = max(counts, key=lambda name: counts[name])
    # Weights are initialized in float32, then converted.
    if (needed := counts[largest] * (4 + itemsize)) > installed_bytes():
        raise OutputError(
            f"{out} cannot be written: {largest} has {counts[largest] / 1e9:.2f} billion parameters, which need "
            f"{needed / 1e9:.0f} GB of memory, and this machine has {installed_bytes() / 1e9:.0f} GB"
        )
    with staging(out) as folder:
        try:
            _write_files(folder, config, seed, DTYPES[dtype])
            for name, content in more.items():
                write_json(folder / name, content)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"{out} cannot be written ({error}): check the disk; nothing was kept") from error


def _write_files(folder: Path, config: ModelConfig, seed: int, dtype: torch.dtype) -> None:
    for name, content in config_files(config).items():
        write_json(folder / name, content)
    for name, encoder, text in config.text_encoders:
        write_tokenizer(folder / name, encoder, text)
    for name, file in FILES.items():
        tensors: dict[str, Tensor] = {}
        for component in _components(config, name):
            tensors |= _random_tensors(component, config, seed, dtype)
        if tensors:
            save_file(tensors, folder / name / file, metadata={"format": "pt"})


def _components(config: ModelConfig, folder: str) -> list[Component]:
    return [component for component in family_of(config).components if component.folder == folder]


def _random_tensors(component: Component, config: ModelConfig, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        # A separate seed for each component, so that its values do not depend on the size of another.
        # Hashed, because the generator uses only the low 32 bits of a seed.
        torch.manual_seed(zlib.crc32(f"{seed}/{component.name}".encode()))
        module = component.build(config)
    return {name: tensor.to(dtype).contiguous() for name, tensor in module.state_dict().items()}


def _parameters(config: ModelConfig) -> dict[str, int]:
    """Count the parameters of each component to write; raise for absurd configs before anything is allocated."""
    components = [component for folder in FILES for component in _components(config, folder)]
    return {row.name: sum(p.numel() for p in build_on_meta(row, config).parameters()) for row in components}


def config_files(config: ModelConfig) -> dict[str, dict[str, object]]:
    """Return the content of each config file by its name."""
    form = family_of(config).form
    classes = {**form.classes}
    classes |= {"vae": (classes["vae"][0], TINY_CLASS)} if isinstance(config.vae, TinyConfig) else {}
    folder, kind = config.denoiser.FOLDER, "clip_text_model" if config.t5 is None else "t5"
    texts = {
        f"{name}/config.json": {"architectures": [classes[name][1]], "model_type": kind, **_but_length(text)}
        for _, name, text in config.text_encoders
    }
    zeros = {"force_zeros_for_empty_prompt": config.zeros_for_empty} if form.zeros_for_empty else {}
    by_length = {length: name for name, length in LENGTHS.items()}
    pipeline = by_length.get(config.t5.length, form.pipeline) if config.t5 else form.pipeline
    return {
        "model_index.json": {"_class_name": pipeline, **zeros, **{k: list(v) for k, v in classes.items()}},
        **texts,
        f"{folder}/config.json": {**_with_class(classes[folder], config.denoiser, _ONLY_OF_LCM), **form.marks},
        "vae/config.json": _with_class(classes["vae"], config.vae) | _block_types(config),
        "scheduler/scheduler_config.json": _with_class(classes["scheduler"], config.schedule, ONLY_FOR_SOME),
    }


def _but_length(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return T5's fields without the one that no file has."""
    return {name: value for name, value in text.items() if name != "length"}


def _with_class(library_and_class: tuple[str, str], config: Any, rare: Mapping[str, object] = {}) -> dict[str, object]:
    """Return a config's JSON content; ``rare``: fields that are written only if they differ from these values."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if rare.get(name, config) != value}
    return {"_class_name": library_and_class[1], **fields}


def _block_types(config: ModelConfig) -> dict[str, object]:
    """Return the fields that diffusers' AutoencoderKL needs in addition to ours."""
    classes = family_of(config).form.classes
    of_diffusers = classes[config.denoiser.FOLDER][0] == classes["vae"][0]
    if not of_diffusers or isinstance(config.vae, TinyConfig):
        return {}
    levels = len(config.vae.block_out_channels)
    return {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
