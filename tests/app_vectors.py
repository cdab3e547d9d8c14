"""Golden vectors of the sample apps: token ids, steps of every sampler, and pixels, as md-export computes them.

    python tests/app_vectors.py examples/testdata/vectors.json

``examples/ios`` and ``examples/android`` read this file in their tests. Metadata is that of artifacts of the nano
checkpoint; the UNet's outputs are random.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.engine.dependencies import notes_of, steps_notes
from md_export.models.sampling.pictures import to_bytes
from md_export.models.sampling.sampler import TRAJECTORIES, Sampler, one_step, steps_of
from md_export.models.tokenizers import tokenize
from md_export.models.walk import picture_from
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import nano_checkpoint

FILE: Final = Path(__file__).parents[1] / "examples" / "testdata" / "vectors.json"
LENGTH: Final = 40
PROMPTS: Final = (
    "a large red circle on the left, white background",
    "",
    "  A  Large\tRED\n\nCircle ",
    "it's 1024 stars' we'll don't",
    "red,green;blue!!! (square) -- #3",
    "caf\u00e9 cafe\u0301 \u00c5ngstr\u00f6m \u039f\u0394\u039f\u03a3 \u0130stanbul stra\u00dfe",
    "\u304d\u306e\u3046\u3000\u7d05\u3044\u5186 \uac00\u0301 \u0665\u00bd\u2163",
    "\U0001f600\U0001f468\u200d\U0001f469 \u2606\u00a0star\u0085x\u200bx",
    "a\x00b <red> _under_score_ 'quoted' ''s",
    "one two three four five six seven eight nine ten red blue green yellow gray white",
)
# A value of the picture for each case of rounding and clipping; none is half way between two levels.
_IMAGE: Final = (-1.5, -1.0, -0.9, -0.3, 0.01, 0.1, 0.33, 0.5, 0.999, 1.0, 1.2, -0.001)
_COUNT: Final = 4


def vectors(checkpoint: Checkpoint) -> dict[str, object]:
    """Return the content of the file."""
    folder = checkpoint.tokenizers["tokenizer"]
    tokens = [{"prompt": prompt, "ids": tokenize(folder, prompt, LENGTH)[0].tolist()} for prompt in PROMPTS]
    image = np.asarray(_IMAGE, np.float32).reshape(1, 3, 2, 2)
    return {
        "text_length": LENGTH,
        "tokens": tokens,
        "samplers": [_walk(checkpoint, plan) for plan in _plans()],
        "image": list(_IMAGE),
        "pixels": to_bytes(picture_from(image)).reshape(-1, 3).tolist(),
    }


def _plans() -> list[SamplerPlan | None]:
    """Return one step, each method without guidance, and one with."""
    return [None, *(SamplerPlan(3, method, 1.0) for method in TRAJECTORIES), SamplerPlan(3, "dpmpp_2m", 7.5)]


def _walk(checkpoint: Checkpoint, plan: SamplerPlan | None) -> dict[str, object]:
    """Return all that an app passes and gets in one picture, and the decoder's input."""
    config = checkpoint.config
    if plan is not None and plan.kind == "dpmpp_2m":
        # Its stochastic form adds noise after each step.
        config = replace(config, schedule=replace(config.schedule, algorithm_type="sde-dpmsolver++"))
    sampler = Sampler(steps_of(config, plan) or one_step(config))
    rng = np.random.default_rng(0)
    count = len(sampler.steps)
    noise, fresh, outputs, without = (_drawn(rng, (size, _COUNT)) for size in (1, sampler.fresh_noise, count, count))
    state, samples = sampler.start(noise), []
    for number in range(count):
        samples.append(sampler.unet_input(number, state)[0].tolist())
        output = outputs[number : number + 1]
        if sampler.guidance is not None:
            output = without[number : number + 1] + np.float32(sampler.guidance) * (output - without[number])
        state = sampler.step(number, state, output, fresh)
    notes = notes_of(checkpoint)["unet"] | steps_notes(replace(checkpoint, config=config), plan)
    return {
        "notes": {name: text for name, text in notes.items() if name not in ("source_sha256", "md_export")},
        "noise": noise[0].tolist(),
        "fresh": fresh.tolist(),
        "timesteps": [step.timestep for step in sampler.steps],
        "samples": samples,
        "outputs": outputs.tolist(),
        "without_prompt": without.tolist() if sampler.guidance is not None else [],
        "latent": (state.x[0] / np.float32(sampler.scaling_factor)).tolist(),
    }


def _drawn(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    return rng.standard_normal(shape).round(3).astype(np.float32)


def text_of(content: dict[str, object]) -> str:
    """Return the file's text: a line for each prompt and sampler; floats read back exactly."""
    rows = {
        name: "[\n  " + ",\n  ".join(json.dumps(item) for item in value) + "\n ]"
        if isinstance(value, list) and value and isinstance(value[0], dict)
        else json.dumps(value)
        for name, value in content.items()
    }
    return "{\n" + ",\n".join(f' "{name}": {row}' for name, row in rows.items()) + "\n}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text_of(vectors(open_checkpoint(nano_checkpoint()))), encoding="utf-8")
