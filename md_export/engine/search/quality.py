"""Measured quality of a choice, and the corrected aim for the next choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from md_export.engine.search.budget import Budget
from md_export.engine.search.choice import Point
from md_export.engine.search.sensitivity import Probe, Probing
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import read_golden
from md_export.parity.metrics import compare
from md_export.parity.rewritten_module import adjust, storages
from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.spec.recipe import Recipe
from md_export.spec.scheme import WeightStorage
from md_export.spec.tensors import Arrays
from md_export.targets.quantization.gptq import rounded

# Excess over the budget, in decibels, that is too small to justify another try.
_CLOSE_DB: Final = 0.5


@dataclass(frozen=True)
class Quality:
    """Quality measured on golden cases; each figure is that of its worst case.

    Attributes:
        picture_db: PSNR of the picture in decibels; None if a component needed for the picture is missing.
        snr_db: SNR of each component's output in decibels.
    """

    picture_db: float | None
    snr_db: dict[str, float]

    def keeps_to(self, budget: Budget) -> bool:
        """Return whether the quality meets the budget."""
        return self._room(budget) >= 0

    def is_close(self, budget: Budget) -> bool:
        """Return whether the quality meets the budget and exceeds it by at most :data:`_CLOSE_DB`."""
        return 0 <= self._room(budget) <= _CLOSE_DB

    def _room(self, budget: Budget) -> float:
        rooms = []
        if budget.picture_db is not None and self.picture_db is not None:
            rooms.append(self.picture_db - budget.picture_db)
        rooms += [] if budget.snr_db is None else [min(self.snr_db.values()) - budget.snr_db]
        return min(rooms, default=0.0)


def next_aim(budget: Budget, point: Point, found: Quality) -> Budget:
    """Return the budget to use for the next choice, corrected by the error of the prediction for one measured choice.

    The aim is the choice's predicted quality plus the difference between budget and measured quality. If the choice
    was short of the budget, the same choice does not meet the new aim.
    """
    picture, snr = budget.picture_db, budget.snr_db
    if picture is not None and found.picture_db is not None:
        picture += point.picture_db - found.picture_db
    if snr is not None:
        snr += min(point.snr_db.values()) - min(found.snr_db.values())
    return dataclasses.replace(budget, picture_db=_positive(picture), snr_db=_positive(snr))


def _positive(decibel: float | None) -> float | None:
    return decibel if decibel is None else max(decibel, 0.1)


def tries(
    budget: Budget,
    aim: Budget,
    most: int,
    choose: Callable[[Budget], Point],
    measure: Callable[[Point], Quality],
) -> Iterator[tuple[Budget, Point, Quality]]:
    """Yield up to ``most`` measured choices with their aims; each aim is corrected by the previous measurement.

    Ends after a choice that meets the budget closely, and before a choice that was already measured.
    """
    seen: set[tuple[object, ...]] = set()
    for _ in range(most):
        point = choose(aim)
        key = tuple(one.form for one in point.chosen)
        if key in seen:
            return
        seen.add(key)
        found = measure(point)
        yield aim, point, found
        if found.is_close(budget):
            return
        aim = next_aim(budget, point, found)


@dataclass(frozen=True)
class Rehearsal:
    """Input of :func:`rehearse_request`: a recipe, and the cases that its choice was measured on."""

    on: Probing
    recipe: Recipe


def rehearse_request(request: Rehearsal) -> Quality:
    """Call :func:`rehearse` for a request; runs in any process."""
    on = request.on
    golden, calibration = read_golden(on.golden).cases, read_golden(on.cases).cases[:: on.step]
    return rehearse(on.checkpoint, request.recipe, golden, calibration)


def rehearse(
    checkpoint: Path, recipe: Recipe, cases: Sequence[GoldenCase], calibration: Sequence[GoldenCase]
) -> Quality:
    """Compute in torch the quality that the recipe's artifacts would have if their runtimes computed in float32.

    Args:
        cases: golden cases; each figure is that of the worst case.
        calibration: cases for calibrated rounding.
    """
    probe = Probe(checkpoint, recipe, cases)
    for name in recipe.components:
        part = probe.parts[name]
        inputs: list[Arrays] = [part.inputs_of(case) for case in calibration]
        adjust(part, probe.target, inputs)
        for path, storage in storages(part, probe.target).items():
            _store(part.module.get_submodule(path), storage)
    return Quality(
        picture_db=min(compare(made, wanted).psnr_db for made, wanted in probe.pictures()),
        snr_db={name: min(probe.parts[name].snr_db(case) for case in cases) for name in recipe.components},
    )


@torch.no_grad()
def _store(layer: nn.Module, storage: WeightStorage) -> None:
    """Round a layer's weight to the nearest stored values, as a target does; already rounded weights do not change."""
    if isinstance(layer, FourConv2d):
        layer.phases = torch.stack([rounded(layer, part, storage, "nearest", None) for part in layer.phases])
        return
    weight = layer.get_parameter("weight")
    layer.register_parameter(
        "weight", nn.Parameter(rounded(layer, weight, storage, "nearest", None), requires_grad=False)
    )
