"""Write the files that Apple's Swift package for Core AI reads beside the assets of an export.

    OUT/metadata.json            kind, assets, constants of the model and its schedule
    OUT/tokenizer/               vocab.json and merges.txt, as in every export
    OUT/parity/unet_output.npy   one golden case, array by array

Source: https://github.com/apple/coreai-models at 86b363d, ``PipelineDescriptor.swift`` for the fields (metadata version
0.2) and ``SD3ParityDataTests.swift`` for the arrays. docs/coreai.md describes what its pipeline can do with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.checkpoint import Checkpoint
from md_export.models.sampling.sampler import one_step
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import read_case, read_index
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import select

METADATA: Final = "metadata.json"
PARITY: Final = "parity"
_VERSION: Final = "0.2"
# The prediction types that the package's PredictionType supports. For others we omit the "diffusion" block, because the
# package reports a missing block as an error; a block without the field would be read as epsilon.
_PREDICTIONS: Final = ("epsilon", "v_prediction")
_STEM: Final = {"vae_decoder": ("vae_decoder_input", "vae_decoder_output")}


def write_assets(recipe: Recipe, checkpoint: Checkpoint, folder: Path, entries: Iterable[ArtifactEntry]) -> None:
    """Write ``metadata.json`` and the arrays of the first golden case in ``folder``."""
    entries = tuple(entries)
    text = json.dumps(metadata(recipe, checkpoint, entries), indent=2, sort_keys=True)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")
    golden = folder / GOLDEN_FOLDER
    index = read_index(golden)
    case = read_case(golden, index.cases[0], index.family)
    (folder / PARITY).mkdir()
    for entry in entries:
        for name, array in _arrays(case, entry):
            np.save(folder / PARITY / f"{name}.npy", array)


def metadata(recipe: Recipe, checkpoint: Checkpoint, entries: Iterable[ArtifactEntry]) -> dict[str, Any]:
    """Return the content of ``metadata.json``: the package's fields, and ``one_step``.

    ``one_step`` describes x0 = a·noise + b·output; the package has no scheduler for it.
    """
    config = checkpoint.config
    step, schedule = one_step(config), config.schedule
    model = {
        "type": "stable-diffusion",
        "prediction_type": schedule.prediction_type,
        "image_size": config.image_size,
        "decoder_scale_factor": step.scaling_factor,
        "scheduler": {
            "training_steps": schedule.num_train_timesteps,
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "beta_schedule": schedule.beta_schedule,
        },
    }
    return {
        "metadata_version": _VERSION,
        "kind": "diffusion",
        "name": recipe.name,
        "assets": {entry.component: entry.file for entry in entries},
        **({"diffusion": model} if schedule.prediction_type in _PREDICTIONS else {}),
        "one_step": {
            "timestep": step.timestep,
            "a": step.a,
            "b": step.b,
            "latent_shape": list(config.latent_shape),
            "text_length": config.text_shape[1],
        },
    }


def _arrays(case: GoldenCase, entry: ArtifactEntry) -> Iterable[tuple[str, Any]]:
    """Yield the names and values of an asset's inputs and outputs; token ids as int64, as in the package's tests."""
    given, made = _STEM.get(entry.component, (None, f"{entry.component}_output"))
    inputs = case.inputs(entry.component)
    for spec, array in zip(entry.inputs, select(inputs, entry.inputs).values(), strict=True):
        yield given or f"{entry.component}_{spec.name}", array.astype(np.int64) if array.dtype == np.int32 else array
    for spec in entry.outputs:
        alone = len(entry.outputs) == 1
        name = "text_encoder_hidden" if entry.component == "text_encoder" else made
        yield name if alone else f"{entry.component}_{spec.name}", case.output(entry.component, spec.name)
