"""From a prompt to a picture, in one UNet step or in many; any runner may sit behind each component.

tokenize → noise → text encoder → UNet → x0 → decoder → picture (section 2 of arXiv 2311.16567). In many steps, x0 comes
from DDIM with classifier-free guidance, as the paper's model does before it learns to take one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from md_export.errors import CheckpointError
from md_export.models.sampling.denoising import Control, denoise, start_of
from md_export.models.sampling.inpainting import with_around
from md_export.spec.names import ADAPTER, CONTROLNET
from md_export.spec.runner import Runner
from md_export.spec.sampler import Ddim, OneStep
from md_export.spec.tensors import Array, Arrays
from md_export.system.quiet_imports import import_quietly

Float32 = NDArray[np.float32]
_OF_EVERY_UNET = ("sample", "timestep", "encoder_hidden_states")


@dataclass(frozen=True)
class Steering:
    """What steers the UNet: a condition picture ``[1, C, H, W]`` in [0, 1], and the component that takes it."""

    component: str
    condition: Array

    @property
    def once(self) -> bool:
        """Whether the picture is all that the component looks at, so that one call serves all steps."""
        return self.component == ADAPTER


@dataclass(frozen=True)
class Generation:
    """Every value on the way to one picture; arrays as the components' inputs and outputs, batch 1.

    ``picture`` is ``[H, W, 3]`` float32 in [0, 1]. Of many steps, N of them are held, those that
    :attr:`Ddim.recorded` names: ``sample`` ``[N, C, h, w]`` and ``timestep`` ``[N]``
    are what the UNet took and ``unet_output`` ``[2·N, C, h, w]`` what it gave, for the empty prompt and for the prompt;
    ``input_ids`` and ``encoder_hidden_states`` are of both, too. In one step ``sample`` is the noise, and None here.

    Of the VAE encoder, where it was run: ``encoder_image`` ``[1, 3, H, W]`` is what it took, ``encoder_latent``
    ``[1, C, h, w]`` the mean that it gave. ``around`` ``[1, C + 1, h, w]``: what an in-painting UNet took beside
    ``sample`` (see :mod:`md_export.models.sampling.inpainting`).

    ``condition``: the picture that an adapter or a ControlNet took, and ``residuals`` what it gave, the outermost
    first; what a ControlNet gave in many steps is ``[2·N, …]``, as ``unet_output``.
    """

    input_ids: Array
    noise: Array
    timestep: Array
    encoder_hidden_states: Array
    unet_output: Array
    latent: Array
    image: Array
    picture: Array
    sample: Array | None = None
    encoder_image: Array | None = None
    encoder_latent: Array | None = None
    around: Array | None = None
    condition: Array | None = None
    residuals: tuple[Array, ...] = ()


def tokenize(tokenizer_dir: Path, prompt: str, length: int) -> NDArray[np.int32]:
    """CLIP BPE ids ``[1, length]``, cut and padded as CLIP does.

    Raises:
        CheckpointError: the folder holds no CLIP tokenizer.
    """
    tokenizer = _tokenizer(tokenizer_dir)
    try:
        encoded = tokenizer(prompt, padding="max_length", max_length=length, truncation=True)
    except Exception as error:
        raise CheckpointError(f"{tokenizer_dir} holds no CLIP tokenizer: {error}; replace its files") from error
    return np.asarray([encoded["input_ids"]], dtype=np.int32)


@cache
def _tokenizer(folder: Path) -> Any:
    clip = import_quietly("transformers.models.clip.tokenization_clip")
    # Built from file names instead of a folder, this class silently yields a vocabulary of two tokens.
    try:
        tokenizer = clip.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{folder} holds no CLIP tokenizer (vocab.json, merges.txt, tokenizer_config.json): {error}"
        ) from error
    if len(tokenizer) < 3:
        raise CheckpointError(f"{folder}: the tokenizer's vocabulary is empty; vocab.json and merges.txt are needed")
    return tokenizer


def draw_noise(seed: int, shape: tuple[int, ...]) -> Float32:
    """x_T ~ N(0, I), the same for the same seed and torch version; golden cases store it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    noise: Float32 = torch.randn(shape, generator=generator, dtype=torch.float32).numpy()
    return noise


def latent_from(noise: Array, unet_output: Array, step: OneStep) -> Float32:
    """x0 / scaling factor, in float32: with ``epsilon`` the output's error is multiplied by 14.6 here."""
    a, b = np.float32(step.a), np.float32(step.b)
    x0 = a * noise.astype(np.float32) + b * unet_output.astype(np.float32)
    return (x0 / np.float32(step.scaling_factor)).astype(np.float32)


def picture_from(image: Array) -> Float32:
    """Decoder output ``[1, 3, H, W]`` in [-1, 1] → ``[H, W, 3]`` in [0, 1]. NaN stays NaN."""
    picture = np.clip(image.astype(np.float32)[0].transpose(1, 2, 0) / 2 + 0.5, 0.0, 1.0)
    return np.ascontiguousarray(picture)


def encode(runners: Mapping[str, Runner], image: Array) -> Array:
    """The latent mean ``[1, C, h, w]`` of a picture ``[1, 3, H, W]`` in [-1, 1], not yet scaled."""
    return only_output(runners["vae_encoder"].run({"image": image}))


def residuals_of(runners: Mapping[str, Runner], steering: Steering | None, given: Arrays) -> dict[str, Array]:
    """What is added to the UNet's maps, by the names of its inputs; nothing without a condition.

    ``given``: what the UNet takes, which a ControlNet takes, too.
    """
    if steering is None:
        return {}
    others = {} if steering.once else given
    return dict(runners[steering.component].run({**others, "condition": steering.condition}))


def generate(
    runners: Mapping[str, Runner],
    input_ids: Array,
    noise: Array,
    step: OneStep,
    around: Array | None = None,
    steering: Steering | None = None,
) -> Generation:
    """Run the components one after the other; ``around``: for a UNet that in-paints, ``steering``: for one steered."""
    timestep = np.asarray([step.timestep], dtype=np.float32)
    hidden = only_output(runners["text_encoder"].run({"input_ids": input_ids}))
    given = {"sample": noise, "timestep": timestep, "encoder_hidden_states": hidden}
    residuals = residuals_of(runners, steering, given)
    output = only_output(runners["unet"].run({**given, "sample": with_around(noise, around), **residuals}))
    latent = latent_from(noise, output, step)
    image = only_output(runners["vae_decoder"].run({"latent": latent}))
    made = hidden, output, latent, image, picture_from(image)
    added, condition = tuple(residuals.values()), None if steering is None else steering.condition
    return Generation(input_ids, noise, timestep, *made, around=around, condition=condition, residuals=added)


def generate_in_steps(
    runners: Mapping[str, Runner],
    input_ids: Array,
    noise: Array,
    ddim: Ddim,
    around: Array | None = None,
    steering: Steering | None = None,
) -> Generation:
    """As :func:`generate`, in many steps; ``input_ids`` ``[2, L]``: of the empty prompt, and of the prompt."""
    condition = None if steering is None else steering.condition
    once = residuals_of(runners, steering, {}) if steering and steering.once else {}
    control = None if steering is None or steering.once else _control_of(runners)
    rows = [only_output(runners["text_encoder"].run({"input_ids": row[None]})) for row in input_ids]
    hidden, taken = np.concatenate(rows), list[tuple[Arrays, Array]]()

    def calls(batches: Sequence[Arrays]) -> list[Array]:
        made = [only_output(runners["unet"].run(batch)) for batch in batches]
        taken.extend(zip(batches, made, strict=True))
        return made

    start = start_of(noise, hidden, around, once, condition if control else None)
    (latent,) = denoise(calls, [start], ddim, control)
    image = only_output(runners["vae_decoder"].run({"latent": latent}))
    kept = [taken[place] for place in ddim.recorded]
    return Generation(
        input_ids,
        noise,
        timestep=np.concatenate([given["timestep"] for given, _ in kept]),
        encoder_hidden_states=hidden,
        unet_output=np.concatenate([made for _, made in kept]),
        latent=latent,
        image=image,
        picture=picture_from(image),
        sample=np.concatenate([given["sample"][:1, : noise.shape[1]] for given, _ in kept]),
        around=around,
        condition=condition,
        residuals=tuple(once.values()) or _of_each_call([given for given, _ in kept]),
    )


def _control_of(runners: Mapping[str, Runner]) -> Control:
    return lambda batches: [dict(runners[CONTROLNET].run(batch)) for batch in batches]


def _of_each_call(batches: Sequence[Arrays]) -> tuple[Array, ...]:
    """What a ControlNet gave for some calls of the UNet, which took it; nothing where there is none."""
    names = [name for name in batches[0] if name not in _OF_EVERY_UNET]
    return tuple(np.concatenate([batch[name] for batch in batches]) for name in names)


def only_output(outputs: Mapping[str, Array]) -> Array:
    """The single output that every component has."""
    (value,) = outputs.values()
    return value
