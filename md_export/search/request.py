"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from md_export.search.budget import Budget


@dataclass(frozen=True)
class SearchRequest:
    """Everything that a user can say.

    Attributes:
        recipe: file to start from, whose rewrites, activations and thresholds stay; None for the target's own.
        judge: command that prints a score for an export, for a budget with a score.
        rounding: other than the recipe's.
        components: to choose for, all where empty; the others stay as the recipe has them.
        golden: folder of cases to measure on and to be judged by; None for the checkpoint's.
        prompts: to make such cases from, instead of ``golden``.
        jobs: processes at a time on this machine; None for one a core.
        dask: address of a scheduler whose workers measure instead.
        out: folder to write; must not exist.
        journal: file of measurements, made here or by an earlier search; None for one beside ``out``.
    """

    checkpoint: Path
    target: str
    budget: Budget
    out: Path
    recipe: Path | None = None
    judge: str | None = None
    rounding: Literal["nearest", "mse", "gptq"] | None = None
    components: tuple[str, ...] = ()
    golden: Path | None = None
    prompts: tuple[str, ...] = ()
    jobs: int | None = None
    dask: str | None = None
    journal: Path | None = None
