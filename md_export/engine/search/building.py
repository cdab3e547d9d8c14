"""Build of a choice: export, execution, and comparison with the budget."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from md_export.engine.export import export
from md_export.engine.request import Resources
from md_export.engine.search.budget import Budget
from md_export.engine.search.quality import Quality
from md_export.errors import RuntimeFault
from md_export.spec.manifest import Manifest
from md_export.spec.recipe import Recipe, Tolerance

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
        recipe,
        tolerances={name: Tolerance(snr_db=0.0) for name in recipe.tolerances},
        picture_psnr_db=0.0,
    )
    manifest, _ = export(anything, checkpoint, folder, golden, progress, resources)
    return Built(folder, manifest, _quality(manifest))


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


def _quality(manifest: Manifest) -> Quality:
    figures = {entry.component: entry.parity.snr_db for entry in manifest.artifacts if entry.parity is not None}
    return Quality(manifest.picture_psnr_db, figures)


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
