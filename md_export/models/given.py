"""Values that no component gives: a request's, and those that the sampler makes of them and of the UNet's outputs."""

from __future__ import annotations

from typing import Final

from md_export.models.graph import Value, kind

LATENT: Final = kind(4, lambda config: config.latent_shape)
IMAGE: Final = kind(4, lambda config: (1, config.vae.out_channels, config.image_size, config.image_size))
TEXT: Final = kind(3, lambda config: config.text_shape)
IDS: Final = kind(2, lambda config: config.text_shape[:2], "int32")
_CELLS: Final = kind(4, lambda config: (1, 1, *config.latent_shape[2:]))

# Token ids of a prompt.
INPUT_IDS: Final = Value("given", "input_ids", IDS, "per prompt")
NOISE: Final = Value("given", "noise", LATENT)
# The picture in [0, 1] that an adapter or a ControlNet takes.
CONDITION: Final = Value("given", "condition", kind(4, lambda config: config.condition_shape or ()))
# The picture in [-1, 1] that the VAE encoder takes.
PICTURE: Final = Value("given", "image", IMAGE)
# Latent cells, 1 where they are painted anew: by a UNet that in-paints, and by another, whose other cells are replaced.
MASK: Final = Value("given", "mask", _CELLS)
BLEND: Final = Value("given", "blend", _CELLS)
GIVEN: Final = (INPUT_IDS, NOISE, CONDITION, PICTURE, MASK, BLEND)

SAMPLE: Final = Value("sampler", "sample", LATENT, "per step", otherwise=NOISE)
TIMESTEP: Final = Value("sampler", "timestep", kind(1, lambda _: (1,)), "per step")
# Scaled latents of the picture that a UNet that in-paints sees in each step.
SHOWN: Final = Value("sampler", "shown", LATENT)
# The decoder's input.
LAST: Final = Value("sampler", "latent", LATENT)
SAMPLER: Final = (SAMPLE, TIMESTEP, SHOWN, LAST)
# The picture [H, W, 3] in [0, 1] that all of this makes.
MADE: Final = Value("made", "picture", kind(3, lambda config: (config.image_size, config.image_size, 3)))
