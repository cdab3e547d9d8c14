"""Rewrites under many-step sampling: any timestep, and the empty prompt beside the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from md_export.parity.metrics import compare
from md_export.rewrites import REWRITES
from md_export.rewrites.tabulate_timestep import TabledTimestepEmbedding
from md_export.spec.tensors import Array
from rewrites.forms import EXACT_DB, Subject
from rewrites.test_exactness import ALL_UNET, TFLITE_UNET

# Without fold_timestep, which is right at one timestep only.
COREML_UNET = tuple(name for name in ALL_UNET if name != "fold_timestep")
TIMESTEPS = (0.0, 1.0, 37.0, 500.0, 998.0, 999.0)


def two(case: Subject) -> dict[str, Array]:
    """Two prompts on two noises."""
    generator = np.random.default_rng(0)
    shapes = {name: array.shape[1:] for name, array in case.arrays.items() if name != "timestep"}
    return {name: generator.standard_normal((2, *shape)).astype(np.float32) for name, shape in shapes.items()}


def run(case: Subject, timestep: float, arrays: dict[str, Array]) -> Array:
    given = {**arrays, "timestep": np.asarray([timestep], np.float32)}
    return replace(case, arrays={spec.name: given[spec.name] for spec in case.inputs}).run()


@pytest.mark.parametrize("model", ["nano", "other"])
@pytest.mark.parametrize("names", [(*COREML_UNET, "tabulate_timestep"), ("tabulate_timestep", *TFLITE_UNET)])
def test_two_prompts_at_any_timestep(
    subject: Callable[[str, str], Subject], model: str, names: tuple[str, ...]
) -> None:
    before, after = subject(model, "unet"), subject(model, "unet")
    assert all(record.fired and record.exact for record in after.rewrite(*names))
    arrays = two(before)
    for timestep in TIMESTEPS:
        wanted = [run(before, timestep, {k: v[row : row + 1] for k, v in arrays.items()}) for row in range(2)]
        assert compare(run(after, timestep, arrays), np.concatenate(wanted)).snr_db >= EXACT_DB
    assert compare(run(after, 998.0, arrays), run(before, 999.0, arrays)).snr_db < EXACT_DB - 20


def test_the_table_survives_half_precision(subject: Callable[[str, str], Subject]) -> None:
    """Angles of hundreds of radians do not."""
    plain, tabled = (subject("nano", "unet") for _ in range(2))
    tabled.rewrite("tabulate_timestep")
    (embedding,) = (layer for layer in tabled.module.modules() if isinstance(layer, TabledTimestepEmbedding))
    timestep = torch.tensor([999.0])
    wanted = plain.module.get_submodule("time_embedding").float()(timestep).numpy()
    embedding.places, embedding.table = embedding.places.half().float(), embedding.table.half().float()
    assert torch.equal(embedding.places, torch.arange(1000.0))
    assert compare(embedding(timestep).numpy(), wanted).snr_db > 60
    angles = timestep.half() * embedding.frequencies.half()
    off = torch.cat([angles.cos(), angles.sin()]).float() - embedding.table[999]
    assert off.abs().max() > 0.1


def test_nothing_is_left_to_tabulate(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    case.rewrite("tabulate_timestep")
    (again,) = case.rewrite("tabulate_timestep")
    assert (again.fired, again.note) == (0, "nothing left to change")
    assert not REWRITES["tabulate_timestep"].drops
