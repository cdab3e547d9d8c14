"""Parts of models that are published as one file, and the names of their tensors in the file."""

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
# Names that a tensor may have in the file, and the third of that tensor to use, if it holds three.
Source = tuple[tuple[str, ...], int | None]


@dataclass(frozen=True)
class Text:
    """A text encoder in a single file.

    Attributes:
        prefix: prefix of its tensor names.
        open_clip: names and padding are OpenCLIP's.
        pooled: the last layer and the projection are used.
    """

    folder: str
    prefix: str
    open_clip: bool = False
    pooled: bool = False

    @property
    def title(self) -> str:
        """Name for messages."""
        return "second text encoder" if self.pooled else "text encoder"


@dataclass(frozen=True)
class Kind:
    """A model that is published as one file.

    Attributes:
        predicts_both: some of these models predict epsilon and some v, so the file must be checked.
        size: side of the latents if the file does not give it.
    """

    title: str
    texts: tuple[Text, ...]
    predicts_both: bool = False
    size: int = 64
    scaling_factor: float = 0.18215


KINDS: Final = (
    Kind("Stable Diffusion 1", (Text("text_encoder", TEXT),)),
    Kind("Stable Diffusion 2", (Text("text_encoder", OPEN_CLIP, open_clip=True),), predicts_both=True),
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
    """Return a component as a folder of diffusers stores it, on the meta device.

    The first text encoder has all layers; Stable Diffusion XL uses them only up to the last but one.
    """
    if component.folder == "text_encoder":
        component = replace(component, build=lambda config: TextEncoder(config.text_encoder))
    return build_on_meta(component, config)


def sources(component: Component, module: nn.Module, kind: Kind, config: ModelConfig) -> Iterator[tuple[str, Source]]:
    """Yield each tensor's name in diffusers and its source in the file."""
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
    """Return a tensor in the shape that diffusers needs.

    This takes a third of a tensor with three, turns 1×1 convolutions of a VAE's attention into linear layers, and
    transposes OpenCLIP's projection.
    """
    if third is not None and tensor.ndim and tensor.shape[0] == 3 * wanted.shape[0]:
        tensor = tensor.chunk(3)[third]
    if source.endswith(".text_projection") and tensor.ndim == wanted.ndim:
        tensor = tensor.T
    ones = tensor.shape[wanted.ndim :]
    return tensor.flatten(wanted.ndim - 1) if wanted.ndim == 2 and ones and set(ones) == {1} else tensor
