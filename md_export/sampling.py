"""From a prompt to a picture, in one UNet step or in many; any runner may sit behind each component.

tokenize → noise → text encoder → UNet → x0 → decoder → picture (section 2 of arXiv 2311.16567). In many steps, x0 comes
from DDIM with classifier-free guidance, as the paper's model does before it learns to take one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from md_export.artifact import OneStep
from md_export.errors import CheckpointError
from md_export.inpainting import with_around
from md_export.quiet import import_quietly
from md_export.sampler import Ddim, DdimStep
from md_export.targets.contract import Runner
from md_export.tensors import Array, Arrays

Float32 = NDArray[np.float32]
# Several sets of a UNet's inputs → its output for each.
Calls = Callable[[Sequence[Arrays]], Sequence[Array]]


@dataclass(frozen=True)
class Generation:
    """Every value on the way to one picture; arrays as the components' inputs and outputs, batch 1.

    ``picture`` is ``[H, W, 3]`` float32 in [0, 1]. Of many steps, N of them are held, those that
    :attr:`Ddim.recorded <md_export.sampler.Ddim.recorded>` names: ``sample`` ``[N, C, h, w]`` and ``timestep`` ``[N]``
    are what the UNet took and ``unet_output`` ``[2·N, C, h, w]`` what it gave, for the empty prompt and for the prompt;
    ``input_ids`` and ``encoder_hidden_states`` are of both, too. In one step ``sample`` is the noise, and None here.

    Of the VAE encoder, where it was run: ``encoder_image`` ``[1, 3, H, W]`` is what it took, ``encoder_latent``
    ``[1, C, h, w]`` the mean that it gave. ``around`` ``[1, C + 1, h, w]``: what an in-painting UNet took beside
    ``sample`` (see :mod:`md_export.inpainting`).

    ``condition``: the picture that an adapter took, and ``residuals`` what it gave, the outermost first.
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


def residuals_of(runners: Mapping[str, Runner], condition: Array | None) -> dict[str, Array]:
    """What an adapter makes of a condition picture, by the names of the UNet's inputs; nothing of none."""
    return {} if condition is None else dict(runners["t2i_adapter"].run({"condition": condition}))


def generate(
    runners: Mapping[str, Runner],
    input_ids: Array,
    noise: Array,
    step: OneStep,
    around: Array | None = None,
    condition: Array | None = None,
) -> Generation:
    """Run the components one after the other; ``around``: for a UNet that in-paints, ``condition``: for an adapter."""
    residuals = residuals_of(runners, condition)
    timestep = np.asarray([step.timestep], dtype=np.float32)
    hidden = only_output(runners["text_encoder"].run({"input_ids": input_ids}))
    sample = with_around(noise, around)
    given = {"sample": sample, "timestep": timestep, "encoder_hidden_states": hidden, **residuals}
    output = only_output(runners["unet"].run(given))
    latent = latent_from(noise, output, step)
    image = only_output(runners["vae_decoder"].run({"latent": latent}))
    made = hidden, output, latent, image, picture_from(image)
    added = tuple(residuals.values())
    return Generation(input_ids, noise, timestep, *made, around=around, condition=condition, residuals=added)


def generate_in_steps(
    runners: Mapping[str, Runner],
    input_ids: Array,
    noise: Array,
    ddim: Ddim,
    around: Array | None = None,
    condition: Array | None = None,
) -> Generation:
    """As :func:`generate`, in many steps; ``input_ids`` ``[2, L]``: of the empty prompt, and of the prompt."""
    residuals = residuals_of(runners, condition)
    rows = [only_output(runners["text_encoder"].run({"input_ids": row[None]})) for row in input_ids]
    hidden, taken = np.concatenate(rows), list[tuple[Arrays, Array]]()

    def calls(batches: Sequence[Arrays]) -> list[Array]:
        made = [only_output(runners["unet"].run(batch)) for batch in batches]
        taken.extend(zip(batches, made, strict=True))
        return made

    (latent,) = denoise(calls, [start_of(noise, hidden, around, residuals)], ddim)
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
        residuals=tuple(residuals.values()),
    )


def start_of(
    noise: Array, texts: Array, around: Array | None = None, residuals: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """What :func:`denoise` starts from: noise ``[1, C, h, w]``, ``[2, L, D]`` of the empty prompt and of the prompt.

    ``residuals`` are an adapter's, and the same for both.
    """
    start = {"sample": noise, "encoder_hidden_states": texts}
    start |= {name: np.repeat(value, 2, axis=0) for name, value in (residuals or {}).items()}
    return start if around is None else {**start, "around": around}


def denoise(calls: Calls, starts: Sequence[Arrays], ddim: Ddim) -> list[Float32]:
    """From noise to the decoder's input in all steps, several pictures side by side.

    Args:
        calls: runs the UNet on sets of its inputs.
        starts: for each picture ``sample``, the noise ``[1, C, h, w]``, and ``encoder_hidden_states`` ``[2, L, D]`` of
            the empty prompt and of the prompt; for in-painting ``around``, and an adapter's residuals ``[2, …]``.
        ddim: the steps.

    Returns:
        One latent ``[1, C, h, w]`` for each.
    """
    places = [start["sample"].astype(np.float32) for start in starts]
    for step in ddim.steps:
        batches = [_inputs(x, step, start) for x, start in zip(places, starts, strict=True)]
        outputs = calls(batches)
        places = [_after(x, output, step, ddim.guidance) for x, output in zip(places, outputs, strict=True)]
    return [(x / np.float32(ddim.scaling_factor)).astype(np.float32) for x in places]


def _inputs(x: Float32, step: DdimStep, start: Arrays) -> dict[str, Array]:
    timestep = np.asarray([step.timestep], dtype=np.float32)
    others = {name: value for name, value in start.items() if name not in ("sample", "around")}
    return {"sample": with_around(np.concatenate([x, x]), start.get("around")), "timestep": timestep, **others}


def _after(x: Float32, output: Array, step: DdimStep, guidance: float) -> Float32:
    without, with_prompt = output.astype(np.float32)[:1], output.astype(np.float32)[1:]
    guided = without + np.float32(guidance) * (with_prompt - without)
    return (np.float32(step.a) * x + np.float32(step.b) * guided).astype(np.float32)


def only_output(outputs: Mapping[str, Array]) -> Array:
    """The single output that every component has."""
    (value,) = outputs.values()
    return value
