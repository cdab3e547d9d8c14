"""Inputs on which ranges of int8 activations are measured, and how a range follows from observed values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from pydantic import ConfigDict

from md_export.errors import RecipeError

# Each case is a run of all three components.
MOST_CASES: Final = 4096
_LONGEST_PROMPT: Final = 4096
# torch's generators take no other seeds.
_LEAST_SEED: Final = -(1 << 63)
_SEEDS_END: Final = 1 << 64
ObserverName = Literal["min_max", "percentile", "mse"]


@dataclass(frozen=True)
class RangeRule:
    """How the range of a value follows from its values on calibration inputs.

    Attributes:
        observer: ``min_max``: from the least to the greatest; ``percentile``: so many percent of them, as many cut off
            below as above; ``mse``: the range whose 256 levels represent them with the least squared error.
        percentile: of the observer of that name; in (50, 100].
    """

    observer: ObserverName = "min_max"
    percentile: float | None = None


@dataclass(frozen=True)
class CalibrationPlan:
    """A recipe's ``[calibration]``.

    Attributes:
        seeds: of the noise, none of which a golden case of the same prompt may have.
        prompts: where none are given, those of the golden cases.
        observer, percentile: as in :class:`RangeRule`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    seeds: tuple[int, ...]
    prompts: tuple[str, ...] | None = None
    observer: ObserverName = "min_max"
    percentile: float | None = None

    def __post_init__(self) -> None:
        """Refuse contradictions. RecipeError names the field."""
        for field in ("seeds", "prompts"):
            if getattr(self, field) == ():
                raise RecipeError(
                    f"[calibration] {field}: empty, so nothing could be measured; name some, or leave it out"
                )
        check_cases("calibration", self.prompts or (), self.seeds)
        if (self.percentile is not None) != (self.observer == "percentile"):
            raise RecipeError('[calibration] percentile: goes with observer = "percentile"; give both or neither')
        if self.percentile is not None and not 50 < self.percentile <= 100:
            raise RecipeError(f"[calibration] percentile: {self.percentile:g} is not above 50 and at most 100")

    @property
    def rule(self) -> RangeRule:
        """How ranges follow from observed values."""
        return RangeRule(self.observer, self.percentile)


def check_cases(table: str, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Raise :class:`RecipeError` for too many cases, and for seeds that torch cannot use."""
    if max(len(prompts), 1) * len(seeds) > MOST_CASES or len(prompts) > MOST_CASES:
        raise RecipeError(f"[{table}] prompts times seeds are more than {MOST_CASES:,} cases; name fewer")
    if any(len(prompt) > _LONGEST_PROMPT for prompt in prompts):
        raise RecipeError(f"[{table}] prompts: one has more than {_LONGEST_PROMPT:,} characters; CLIP reads 77 tokens")
    for seed in seeds:
        if not _LEAST_SEED <= seed < _SEEDS_END:
            raise RecipeError(f"[{table}] seeds: {seed!s:.30} does not fit into 64 bits")
