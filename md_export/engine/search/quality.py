"""How good a choice really is, and how the aim of the next one follows from that."""

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
from md_export.spec.tensors import Arrays
from md_export.spec.weight_storage import WeightStorage
from md_export.targets.quantization.gptq import rounded

# Decibels more than was asked for that are not worth another try.
_CLOSE_DB: Final = 0.5


@dataclass(frozen=True)
class Quality:
    """Measured on golden cases, the worst of each figure.

    Attributes:
        picture_db: PSNR of the picture; None where a component is missing for it.
        snr_db: of each component's output.
    """

    picture_db: float | None
    snr_db: dict[str, float]

    def keeps_to(self, budget: Budget) -> bool:
        """Whether it is as good as the budget asks."""
        return self._room(budget) >= 0

    def is_close(self, budget: Budget) -> bool:
        """Whether it is that good, and not much better."""
        return 0 <= self._room(budget) <= _CLOSE_DB

    def _room(self, budget: Budget) -> float:
        rooms = []
        if budget.picture_db is not None and self.picture_db is not None:
            rooms.append(self.picture_db - budget.picture_db)
        rooms += [] if budget.snr_db is None else [min(self.snr_db.values()) - budget.snr_db]
        return min(rooms, default=0.0)


def next_aim(budget: Budget, point: Point, found: Quality) -> Budget:
    """The qualities to choose by so that what is asked for is found, as far as one measured choice tells.

    What was predicted of the choice, more by what it was measured short of the budget: never the same choice again.
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
    """Choices, each aimed by what the one before was measured at; the last one is close, or tried as often as allowed.

    A choice that was measured before is not measured again, and nothing follows it.
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
    """A recipe to rehearse, on what its choice was measured on."""

    on: Probing
    recipe: Recipe


def rehearse_request(request: Rehearsal) -> Quality:
    """:func:`rehearse` in any process."""
    on = request.on
    golden, calibration = read_golden(on.golden).cases, read_golden(on.cases).cases[:: on.step]
    return rehearse(on.checkpoint, request.recipe, golden, calibration)


def rehearse(
    checkpoint: Path, recipe: Recipe, cases: Sequence[GoldenCase], calibration: Sequence[GoldenCase]
) -> Quality:
    """What the recipe's artifacts would make of golden cases if their runtimes computed in float32.

    Args:
        cases: that judge; the worst of each figure counts.
        calibration: for rounding.
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
    """Round to nearest, as a target does; what was rounded already stays as it is."""
    if isinstance(layer, FourConv2d):
        layer.phases = torch.stack([rounded(layer, part, storage, "nearest", None) for part in layer.phases])
        return
    weight = layer.get_parameter("weight")
    layer.register_parameter(
        "weight", nn.Parameter(rounded(layer, weight, storage, "nearest", None), requires_grad=False)
    )
