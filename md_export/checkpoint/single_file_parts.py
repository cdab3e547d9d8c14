"""The parts of the models that people have as one file: where the file has them, and under which names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor, nn

from md_export.checkpoint.modules import build_on_meta
from md_export.checkpoint.original_names import open_clip_name, original_names, original_vae_name
from md_export.models.config import ModelConfig
from md_export.models.graph import Component
from md_export.models.text_encoder import TextEncoder

UNET: Final = "model.diffusion_model."
VAE: Final = "first_stage_model."
TEXT: Final = "cond_stage_model.transformer."
OPEN_CLIP: Final = "cond_stage_model.model."
CLIP_OF_XL: Final = "conditioner.embedders.0.transformer."
OPEN_CLIP_OF_XL: Final = "conditioner.embedders.1.model."
# Names in the file that a tensor may have, and which third of it is meant.
Source = tuple[tuple[str, ...], int | None]


@dataclass(frozen=True)
class Text:
    """A text encoder.

    Attributes:
        prefix: where its names begin.
        open_clip: the names and the padding are OpenCLIP's.
        pooled: its last layer and its projection are used.
    """

    folder: str
    prefix: str
    open_clip: bool = False
    pooled: bool = False

    @property
    def title(self) -> str:
        """Return what a message calls it."""
        return "second text encoder" if self.pooled else "text encoder"


@dataclass(frozen=True)
class Kind:
    """A model that people have as one file.

    Attributes:
        tells: some predict epsilon and some v.
        size: side of latents where the file does not say it.
    """

    title: str
    texts: tuple[Text, ...]
    tells: bool = False
    size: int = 64
    scaling_factor: float = 0.18215


KINDS: Final = (
    Kind("Stable Diffusion 1", (Text("text_encoder", TEXT),)),
    Kind("Stable Diffusion 2", (Text("text_encoder", OPEN_CLIP, open_clip=True),), tells=True),
    Kind(
        "Stable Diffusion XL",
        (
            Text("text_encoder", CLIP_OF_XL),
            Text("text_encoder_2", OPEN_CLIP_OF_XL, open_clip=True, pooled=True),
        ),
        size=128,
        scaling_factor=0.13025,
    ),
)


def module_of(component: Component, config: ModelConfig) -> nn.Module:
    """Return what a folder of diffusers' holds of a component, on the meta device.

    The first text encoder has all of its layers; Stable Diffusion XL itself reads only up to the last but one.
    """
    if component.folder == "text_encoder":
        component = replace(component, build=lambda config: TextEncoder(config.text_encoder))
    return build_on_meta(component, config)


def sources(component: Component, module: nn.Module, kind: Kind, config: ModelConfig) -> Iterator[tuple[str, Source]]:
    """Yield each tensor's name in diffusers and where the file has it."""
    names = [name for name, _ in module.named_parameters()]
    text = next((part for part in kind.texts if part.folder == component.folder), None)
    if component.folder == "unet":
        paths = original_names(path for path, _ in module.named_modules())
        for name in names:
            path, _, leaf = name.rpartition(".")
            yield name, ((f"{UNET}{paths.get(path, path)}.{leaf}",), None)
    elif text is None:
        levels = config.vae.downscale.bit_length()
        for name in names:
            yield name, ((VAE + original_vae_name(name, levels),), None)
    elif not text.open_clip:
        for name in names:
            yield name, ((f"{text.prefix}text_model.{name}", text.prefix + name), None)
    else:
        for name in names:
            if (found := open_clip_name(name)) is not None:
                yield name, ((text.prefix + found[0], text.prefix + name), found[1])


def shaped(tensor: Tensor, source: str, third: int | None, wanted: Tensor) -> Tensor:
    """Return a third of a tensor that holds three; a VAE's attention as linear layers, which was 1×1 convolutions.

    OpenCLIP's projection is the transpose of a linear layer's weight.
    """
    if third is not None and tensor.ndim and tensor.shape[0] == 3 * wanted.shape[0]:
        tensor = tensor.chunk(3)[third]
    if source.endswith(".text_projection") and tensor.ndim == wanted.ndim:
        tensor = tensor.T
    ones = tensor.shape[wanted.ndim :]
    return tensor.flatten(wanted.ndim - 1) if wanted.ndim == 2 and ones and set(ones) == {1} else tensor
