"""Calibration of int8 activations: the inputs to observe, and how a range is computed from observed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import ConfigDict

from md_export.errors import RecipeError

# Each case runs all three components.
MOST_CASES: Final = 4096
_LONGEST_PROMPT: Final = 4096
# Range of seeds that torch.Generator.manual_seed accepts.
_LEAST_SEED: Final = -(1 << 63)
_SEEDS_END: Final = 1 << 64
ObserverName = Literal["min_max", "percentile", "mse"]


@dataclass(frozen=True)
class RangeRule:
    """Rule that computes the range of an activation from its values on calibration inputs.

    Attributes:
        observer: ``min_max``: from the smallest to the largest value; ``percentile``: the central ``percentile`` % of
            the values; ``mse``: the range with the smallest squared error when 256 levels represent the values.
        percentile: share of values in the range, for that observer only; in (50, 100].
    """

    observer: ObserverName = "min_max"
    percentile: float | None = None


@dataclass(frozen=True)
class CalibrationPlan:
    """The ``[calibration]`` table of a recipe.

    Attributes:
        seeds: seeds of the noise; a golden case with the same prompt must not use any of them.
        prompts: prompts to compute; None for those of the golden cases.
        observer, percentile: as in :class:`RangeRule`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    seeds: tuple[int, ...]
    prompts: tuple[str, ...] | None = None
    observer: ObserverName = "min_max"
    percentile: float | None = None

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for values that contradict each other."""
        for field in ("seeds", "prompts"):
            if getattr(self, field) == ():
                raise RecipeError(
                    f"[calibration] {field}: empty, so no range could be measured; give at least one, or leave it out"
                )
        check_cases("calibration", self.prompts or (), self.seeds)
        if (self.percentile is not None) != (self.observer == "percentile"):
            raise RecipeError('[calibration] percentile: goes with observer = "percentile"; give both or neither')
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise RecipeError(f"[calibration] percentile: {self.percentile:g} is not above 50 and at most 100")

    @property
    def rule(self) -> RangeRule:
        """Rule for ranges of activations."""
        return RangeRule(self.observer, self.percentile)


def check_cases(table: str, prompts: tuple[str, ...], seeds: tuple[int, ...], field: str = "prompts") -> None:
    """Raise :class:`RecipeError` for too many cases or for seeds outside 64 bits, which torch refuses.

    ``field``: the field of the table that has the prompts.
    """
    if max(len(prompts), 1) * len(seeds) > MOST_CASES or len(prompts) > MOST_CASES:
        raise RecipeError(f"[{table}] {field} times seeds are more than {MOST_CASES:,} cases; name fewer")
    if any(len(prompt) > _LONGEST_PROMPT for prompt in prompts):
        raise RecipeError(f"[{table}] {field}: one has more than {_LONGEST_PROMPT:,} characters; CLIP reads 77 tokens")
    for seed in seeds:
        if not _LEAST_SEED <= seed < _SEEDS_END:
            raise RecipeError(f"[{table}] seeds: {seed!s:.30} does not fit into 64 bits")
