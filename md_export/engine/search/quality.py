"""Measured quality of a choice, in torch and of its build, and the corrected aim for the next choice."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.engine.export import export
from md_export.engine.request import Resources
from md_export.engine.search.frontier import Point
from md_export.engine.search.probe import Probe
from md_export.engine.search.request import Budget
from md_export.engine.search.sensitivity import Probing, store
from md_export.errors import RuntimeFault
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import read_golden
from md_export.parity.metrics import compare
from md_export.parity.rewritten_module import adjust, storages
from md_export.spec.manifest import Manifest
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.tensors import Arrays

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
    budget: Budget, aim: Budget, most: int, choose: Callable[[Budget], Point], measure: Callable[[Point], Quality]
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
        # As a target does: to the nearest stored value; weights that are already rounded do not change.
        nearest = dataclasses.replace(recipe.schemes[name], rounding="nearest", bias_correction=False)
        for path, storage in storages(part, probe.target).items():
            store(part.module.get_submodule(path), storage, nearest, None)
    return Quality(
        picture_db=min(compare(made, wanted).psnr_db for made, wanted in probe.pictures()),
        snr_db={name: min(probe.parts[name].snr_db(case) for case in cases) for name in recipe.components},
    )


# Margin below a measured figure, in decibels, for thresholds of the recipe that the search writes.
_MARGIN_DB = 1.0


@dataclass(frozen=True)
class Built:
    """An export with its measured quality and size."""

    folder: Path
    manifest: Manifest
    quality: Quality

    @property
    def bytes(self) -> int:
        """Total size of all artifacts in bytes."""
        return sum(entry.bytes for entry in self.manifest.artifacts)


def build(
    recipe: Recipe,
    checkpoint: Path,
    folder: Path,
    golden: Path | None,
    progress: Callable[[str], None],
    resources: Resources,
) -> Built:
    """Export with thresholds of 0 dB, which accept any useful output; the caller compares the quality with a budget."""
    shutil.rmtree(folder, ignore_errors=True)
    anything = dataclasses.replace(
        recipe, tolerances={name: Tolerance(snr_db=0.0) for name in recipe.tolerances}, picture_psnr_db=0.0
    )
    manifest, _ = export(anything, checkpoint, folder, golden, progress, resources)
    figures = {entry.component: entry.parity.snr_db for entry in manifest.artifacts if entry.parity is not None}
    return Built(folder, manifest, Quality(manifest.picture_psnr_db, figures))


def sealed(recipe: Recipe, quality: Quality, budget: Budget) -> Recipe:
    """Return the recipe with its final thresholds: the budget's, or :data:`_MARGIN_DB` below the measured figure.

    The measured figure is used where the budget sets no limit.
    """
    snr = {name: budget.snr_db or _below(measured) for name, measured in quality.snr_db.items()}
    return dataclasses.replace(
        recipe,
        tolerances={name: Tolerance(snr_db=snr[name]) for name in recipe.components},
        picture_psnr_db=budget.picture_db or _below(quality.picture_db or 0.0),
    )


def _below(measured: float) -> float:
    return round(max(0.0, measured - _MARGIN_DB), 1)


def judged(command: str, export: Path) -> float:
    """Run ``command EXPORT`` and return the number on the last line of its output.

    Raises:
        RuntimeFault: the command cannot be started, fails, or its last line is not a finite number.
    """
    try:
        ended = subprocess.run([*shlex.split(command), str(export)], capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        raise RuntimeFault(f"--judge {command!r:.80} cannot be started: {error}") from error
    last = (ended.stdout.strip().splitlines() or [""])[-1]
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or [last])[-1]
        raise RuntimeFault(f"--judge {command!r:.80} ended with status {ended.returncode}: {why}")
    try:
        score = float(last)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise RuntimeFault(f"--judge {command!r:.80}: its last line is {last!r:.60}, not a score")
    return score
