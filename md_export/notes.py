"""What an app must know to run an artifact, as it is written into the artifact itself."""

from __future__ import annotations

from md_export import __version__
from md_export.checkpoint import Checkpoint
from md_export.parity.prepare import one_step
from md_export.sampling import tokenize


def notes_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The notes that all components share; floats read back exactly, sizes are joined by commas.

    ``checkpoint_sha256``, ``md_export``
        which checkpoint was exported, by which version.
    ``prediction_type``, ``timestep``, ``a``, ``b``, ``scaling_factor``
        x0 = a·noise + b·output of one UNet call at ``timestep``; the decoder takes x0 / ``scaling_factor``.
    ``latent_shape``, ``image_size``
        ``1,C,h,w`` of noise, UNet output and x0; side of the picture in pixels.
    ``image_scale``, ``image_offset``
        picture = image · scale + offset, clipped to [0, 1].
    ``text_length``, ``bos_token_id``, ``eos_token_id``, ``pad_token_id``
        token ids are bos, the prompt's (cut to fit), eos, and pad up to the length.

    Raises:
        CheckpointError: a file cannot be read, or the tokenizer is none of CLIP's.
    """
    config, step = checkpoint.config, one_step(checkpoint.config)
    length = config.text_shape[1]
    # The tokenizer itself says what it puts around no words at all; its files say it in several ways.
    start, end, *padding = (int(token) for token in tokenize(checkpoint.tokenizer_dir, "", length)[0])
    return {
        "checkpoint_sha256": checkpoint.sha256(),
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
