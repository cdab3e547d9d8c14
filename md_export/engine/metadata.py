"""Metadata that an app needs to run an artifact; it is stored in the artifact itself."""

from __future__ import annotations

import dataclasses

from md_export import __version__
from md_export.checkpoint import Checkpoint
from md_export.models.families import family_of
from md_export.models.sampling.generate import tokenize
from md_export.models.sampling.sampler import one_step, steps_of
from md_export.spec.sampler import Euler, SamplerPlan


def notes_of(checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    """Return the metadata of each component; floats parse back exactly, sizes are joined by commas.

    ``source_sha256``, ``md_export``
        hash of the weights and config that the component was made from, and the md-export version. All other fields
        are the same for all components:
    ``prediction_type``, ``timestep``, ``a``, ``b``, ``scaling_factor``
        x0 = a·noise + b·output of one UNet call at ``timestep``; the decoder's input is x0 / ``scaling_factor``.
    ``latent_shape``, ``image_size``
        ``1,C,h,w`` of noise, UNet output and x0; side of the picture in pixels.
    ``image_scale``, ``image_offset``
        picture = image · scale + offset, clipped to [0, 1].
    ``condition_shape``
        ``1,C,H,W`` of the picture in [0, 1] for the adapter or the ControlNet; absent without one.
    ``text_length``, ``bos_token_id``, ``eos_token_id``, ``pad_token_id``
        the token ids are bos, the prompt's tokens (cut to fit), eos, and pad up to ``text_length``.

    Raises:
        CheckpointError: a file cannot be read, or the tokenizer is not a CLIP tokenizer.
    """
    config, step = checkpoint.config, one_step(checkpoint.config)
    length = config.text_shape[1]
    # Read the special tokens from a tokenized empty prompt: the tokenizer's files store them in several formats.
    start, end, *padding = (int(token) for token in tokenize(checkpoint.tokenizer_dir, "", length)[0])
    shared = {
        "md_export": __version__,
        "prediction_type": step.prediction_type,
        "timestep": str(step.timestep),
        "a": repr(float(step.a)),
        "b": repr(float(step.b)),
        "scaling_factor": repr(float(step.scaling_factor)),
        "latent_shape": ",".join(str(size) for size in config.latent_shape),
        "image_size": str(config.image_size),
        "image_scale": "0.5",
        "image_offset": "0.5",
        "text_length": str(length),
        "bos_token_id": str(start),
        "eos_token_id": str(end),
        "pad_token_id": str(padding[-1] if padding else end),
    }
    if config.condition_shape is not None:
        shared["condition_shape"] = ",".join(str(size) for size in config.condition_shape)
    return {name: {"source_sha256": checkpoint.source_sha256(name)} | shared for name in family_of(config).rows}


def steps_notes(checkpoint: Checkpoint, plan: SamplerPlan | None) -> dict[str, str]:
    """Return the metadata for sampling in many steps, which replaces fields of the same name; empty for one step.

    ``timestep``, ``a``, ``b``
        one value per step, joined by commas: x becomes a·x + b·output. The decoder's input is the last
        x / ``scaling_factor``.
    ``sampler``, ``guidance``
        ``ddim`` or ``euler``; the output is u + guidance·(c - u), where u and c are the UNet's outputs for the empty
        prompt and for the prompt.
    ``start``, ``scale``
        only for ``euler``: the first x is start·noise, and the UNet's input is scale·x in each step.

    Raises:
        ConfigError: the checkpoint's schedule does not support these steps.
    """
    steps = steps_of(checkpoint.config, plan)
    if steps is None or plan is None:
        return {}
    columns = [field.name for field in dataclasses.fields(steps.steps[0])]
    return {
        "sampler": plan.kind,
        "guidance": repr(float(steps.guidance)),
        **({"start": repr(steps.start)} if isinstance(steps, Euler) else {}),
        **{name: ",".join(repr(getattr(step, name)) for step in steps.steps) for name in columns},
    }
