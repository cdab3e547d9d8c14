"""Names and kinds of all values of a picture: outputs of components, of requests (``given``) and of the sampler.

The name of a value is ``node.output``: ``text_encoder.last_hidden_state``, ``given.noise``, ``sampler.timestep``. If a
node is called more than once for a picture, the number of the call follows: ``unet.out_sample.16``. This module does
not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from md_export.spec.tensors import Array, Arrays, TensorSpec

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig

Shape = tuple[int, ...]
# How often a node is called for a picture. With guidance a picture has two prompts, first the empty or negative one.
Called = Literal["once", "per prompt", "per step"]


@dataclass(frozen=True)
class Kind:
    """Rank, dtype and shapes, by the checkpoint's configs, of a value; ``many``: of several numbered values.

    ``rank``: None for values between chunks, which have different names and ranks.
    """

    rank: int | None
    shapes: Callable[[ModelConfig], tuple[Shape, ...]]
    dtype: str = "float32"
    many: bool = False

    def specs(self, name: str, config: ModelConfig) -> tuple[TensorSpec, ...]:
        """Return the spec of the value ``name``; for many values, of ``name0``, ``name1``, …"""
        shapes = self.shapes(config)
        names = [f"{name}{place}" for place in range(len(shapes))] if self.many else [name]
        return tuple(TensorSpec(*both, self.dtype) for both in zip(names, shapes, strict=True))


def kind(rank: int, shape: Callable[[ModelConfig], Shape], dtype: str = "float32") -> Kind:
    """Return the kind of a single value."""
    return Kind(rank, lambda config: (shape(config),), dtype)


@dataclass(frozen=True)
class Value:
    """A reference to an output of a node.

    ``otherwise``: value to use if this one is missing, for example the noise as the sample of a single step.
    """

    node: str
    name: str
    kind: Kind
    called: Called = "once"
    otherwise: Value | None = None

    @property
    def key(self) -> str:
        """Name among the values of a picture."""
        return f"{self.node}.{self.name}"

    def or_else(self, other: Value) -> Value:
        """Return this value with ``other`` as its replacement if it is missing."""
        return replace(self, otherwise=other)

    def alternatives(self) -> Iterator[Value]:
        """Yield the value and its replacements."""
        yield self
        if self.otherwise is not None:
            yield from self.otherwise.alternatives()

    def read(self, values: Arrays, called: Called, call: int | None) -> dict[str, Array]:
        """Return the value for one call of a node by ``""``, or many values by number; empty if it is missing."""
        found = {}
        for number in self._numbers(values):
            value = self._of_call(f"{self.key}{number}", values, called, call)
            if value is None:
                break
            found[number] = value
        return found if found or self.otherwise is None else self.otherwise.read(values, called, call)

    def _numbers(self, values: Arrays) -> Iterable[str]:
        if self.kind is BORDERS:
            named = (key.removeprefix(self.key) for key in values if key.startswith(self.key))
            return dict.fromkeys(name.partition(".")[0] for name in named)
        return map(str, range(MOST)) if self.kind.many else ("",)

    def _of_call(self, key: str, values: Arrays, called: Called, call: int | None) -> Array | None:
        if key in values:
            return values[key]
        if self.called == called:
            return values.get(f"{key}.{call}")
        # A node that is called once for all prompts gets their encodings as one batch.
        rows = [values[name] for name in (f"{key}.{prompt}" for prompt in range(2)) if name in values]
        return np.concatenate(rows) if self.called == "per prompt" and rows else None


# Maximum number of values of one kind with many.
MOST: Final = 32


# Outputs of a chunk that later chunks need: one for each value at the border, named after the module that computed it.
BORDERS: Final = Kind(None, lambda _: (), many=True)
LATENT: Final = kind(4, lambda config: config.latent_shape)
IMAGE: Final = kind(4, lambda config: (1, config.vae.out_channels, *config.picture_shape))
TEXT: Final = kind(3, lambda config: config.text_shape)
IDS: Final = kind(2, lambda config: config.text_shape[:2], "int32")
_CELLS: Final = kind(4, lambda config: (1, 1, *config.latent_shape[2:]))

# Token ids of a prompt, and a mask: 0 for padding, else 1.
INPUT_IDS: Final = Value("given", "input_ids", IDS, "per prompt")
ATTENTION_MASK: Final = Value("given", "attention_mask", kind(2, lambda config: config.text_shape[:2]), "per prompt")
# Class of a picture, for a family without text.
CLASS_LABELS: Final = Value("given", "class_labels", kind(1, lambda _: (1,), "int32"), "per prompt")
NOISE: Final = Value("given", "noise", LATENT)
# Noise [n, C, h, w] for the n steps that add noise.
FRESH: Final = Value("given", "fresh_noise", LATENT)
# Condition picture in [0, 1] for an adapter or a ControlNet.
CONDITION: Final = Value("given", "condition", kind(4, lambda config: config.condition_shape or ()))
# Picture in [-1, 1] for the VAE encoder.
PICTURE: Final = Value("given", "image", IMAGE)
# Masks of latent pixels, 1 where they are repainted: for an in-painting UNet, and for any other UNet, after which the
# pixels outside the mask are restored.
MASK: Final = Value("given", "mask", _CELLS)
BLEND: Final = Value("given", "blend", _CELLS)
# Unscaled latents of the picture that an editing UNet changes.
EDITED: Final = Value("given", "edited", LATENT)
GIVEN: Final = (INPUT_IDS, NOISE, FRESH, CONDITION, PICTURE, MASK, BLEND, EDITED)

# Height and width of the picture before cropping, top and left of the crop, height and width after it.
TIME_IDS: Final = Value("given", "time_ids", kind(2, lambda _: (1, 6)))
# Factor 0 or 1 of each prompt's text embeddings; only given if unconditional embeddings are zeros.
PROMPTED: Final = Value("given", "prompted", kind(1, lambda _: (1,)))

SAMPLE: Final = Value("sampler", "sample", LATENT, "per step", otherwise=NOISE)
TIMESTEP: Final = Value("sampler", "timestep", kind(1, lambda _: (1,)), "per step")
# Scaled latents of the picture that an in-painting UNet gets in each step.
SHOWN: Final = Value("sampler", "shown", LATENT)
# The decoder's input.
LAST: Final = Value("sampler", "latent", LATENT)
SAMPLER: Final = (SAMPLE, TIMESTEP, SHOWN, LAST)
# The finished picture [H, W, 3] in [0, 1].
MADE: Final = Value("made", "picture", kind(3, lambda config: (*config.picture_shape, 3)))


def is_guided(values: Arrays) -> bool:
    """Return whether a picture is made with guidance, so with two prompts."""
    return any(f"{value.key}.1" in values for value in (INPUT_IDS, CLASS_LABELS))


def calls_in(values: Collection[str], key: str) -> tuple[int, ...]:
    """Return the numbers of the calls that have a value ``key``, in order; empty for a node that is called once."""
    beginning = f"{key}."
    return tuple(sorted(int(name.removeprefix(beginning)) for name in values if name.startswith(beginning)))
