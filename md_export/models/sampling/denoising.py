"""Many steps from noise to the decoder's input, whoever runs the UNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from md_export.models.sampling.inpainting import with_around
from md_export.spec.sampler import Ddim, DdimStep
from md_export.spec.tensors import Array, Arrays

Float32 = NDArray[np.float32]
# Several sets of a UNet's inputs → its output for each.
Calls = Callable[[Sequence[Arrays]], Sequence[Array]]
# As many sets of a ControlNet's inputs → all that it gives for each, by the names of the UNet's inputs.
Control = Callable[[Sequence[Arrays]], Sequence[Arrays]]


def start_of(
    noise: Array,
    texts: Array,
    around: Array | None = None,
    residuals: Mapping[str, Array] | None = None,
    condition: Array | None = None,
) -> dict[str, Array]:
    """What :func:`denoise` starts from: noise ``[1, C, h, w]``, ``[2, L, D]`` of the empty prompt and of the prompt.

    ``residuals`` are an adapter's, and the same for both; ``condition`` is for a ControlNet, which gives its own in
    each step.
    """
    start = {"sample": noise, "encoder_hidden_states": texts}
    start |= {name: np.repeat(value, 2, axis=0) for name, value in (residuals or {}).items()}
    more = {"around": around, "condition": condition}
    return start | {name: value for name, value in more.items() if value is not None}


def denoise(calls: Calls, starts: Sequence[Arrays], ddim: Ddim, control: Control | None = None) -> list[Float32]:
    """From noise to the decoder's input in all steps, several pictures side by side.

    Args:
        calls: runs the UNet on sets of its inputs.
        starts: for each picture ``sample``, the noise ``[1, C, h, w]``, and ``encoder_hidden_states`` ``[2, L, D]`` of
            the empty prompt and of the prompt; for in-painting ``around``; an adapter's residuals ``[2, …]``, or a
            ControlNet's ``condition``.
        ddim: the steps.
        control: runs the ControlNet on the same inputs and the condition.

    Returns:
        One latent ``[1, C, h, w]`` for each.
    """
    places = [start["sample"].astype(np.float32) for start in starts]
    for step in ddim.steps:
        batches = [_inputs(x, step, start) for x, start in zip(places, starts, strict=True)]
        added = [{}] * len(batches) if control is None else control(batches)
        outputs = calls([_of_unet(*both) for both in zip(batches, added, starts, strict=True)])
        places = [_after(x, output, step, ddim.guidance) for x, output in zip(places, outputs, strict=True)]
    return [(x / np.float32(ddim.scaling_factor)).astype(np.float32) for x in places]


def _inputs(x: Float32, step: DdimStep, start: Arrays) -> dict[str, Array]:
    timestep = np.asarray([step.timestep], dtype=np.float32)
    others = {name: value for name, value in start.items() if name not in ("sample", "around")}
    return {"sample": np.concatenate([x, x]), "timestep": timestep, **others}


def _of_unet(given: Arrays, added: Arrays, start: Arrays) -> dict[str, Array]:
    """The UNet's inputs, after a ControlNet has looked at ``given`` and ``added`` something."""
    others = {name: value for name, value in given.items() if name != "condition"}
    return {**others, "sample": with_around(given["sample"], start.get("around")), **added}


def _after(x: Float32, output: Array, step: DdimStep, guidance: float) -> Float32:
    without, with_prompt = output.astype(np.float32)[:1], output.astype(np.float32)[1:]
    guided = without + np.float32(guidance) * (with_prompt - without)
    return (np.float32(step.a) * x + np.float32(step.b) * guided).astype(np.float32)
