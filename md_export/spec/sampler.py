"""One step, or many: what a recipe asks for, and what an app needs to take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import ConfigDict

from md_export.errors import RecipeError

_FORBID: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_MOST_STEPS: Final = 1000
_MOST_TIMESTEPS: Final = 100_000
_LARGEST_GUIDANCE: Final = 100.0
# Stable Diffusion's.
USUAL_GUIDANCE: Final = 7.5
# UNet calls of a walk that a golden case holds, the first and the last among them.
_RECORDED: Final = 4
# Right at the one timestep that they were folded for.
OF_ONE_STEP: Final = ("fold_timestep", "fold_x0")


@dataclass(frozen=True)
class OneStep:
    """What an app needs to run the artifacts: x0 = a·x_T + b·output at ``timestep``; decode x0 / scaling_factor."""

    timestep: int
    a: float
    b: float
    scaling_factor: float
    prediction_type: str


@dataclass(frozen=True)
class NoiseSchedule:
    """What the noise of every timestep follows from, as in ``scheduler_config.json``: where to start from a picture."""

    __pydantic_config__ = _FORBID

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: Literal["linear", "scaled_linear"]

    def __post_init__(self) -> None:
        # Of a file that anybody may have written.
        if not 1 <= self.num_train_timesteps <= _MOST_TIMESTEPS or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"no schedule: {self}")


@dataclass(frozen=True)
class SamplerPlan:
    """A recipe's ``[sampler]``; without it pictures are made in one step.

    Attributes:
        kind: DDIM without noise of its own (arXiv 2010.02502, eta 0), or Euler's method (arXiv 2206.00364);
            timesteps are spaced as the checkpoint's scheduler has them.
        steps: calls of the UNet for a picture.
        guidance: classifier-free (arXiv 2207.12598): each call takes the empty prompt and the prompt, and the step is
            taken with u + guidance·(c - u).
        cases: golden cases that are made at most, since torch takes all steps for each.
    """

    __pydantic_config__ = _FORBID

    kind: Literal["ddim", "euler"]
    steps: int
    guidance: float
    cases: int = 4

    def __post_init__(self) -> None:
        """Refuse what nobody can sample with. RecipeError names the field."""
        if not 1 <= self.steps <= _MOST_STEPS:
            raise RecipeError(f"[sampler] steps: {self.steps!s:.20} is not from 1 to {_MOST_STEPS}")
        if not 1 < self.guidance <= _LARGEST_GUIDANCE:
            raise RecipeError(
                f"[sampler] guidance: {self.guidance:g} is not above 1, where it begins to guide, and at most "
                f"{_LARGEST_GUIDANCE:g}"
            )
        if self.cases < 1:
            raise RecipeError("[sampler] cases: less than one, so nothing could be proved; give 4, for instance")

    def check_rewrites(self, rewrites: tuple[str, ...]) -> None:
        """Raise :class:`RecipeError` for rewrites that are right for one step only."""
        wrong = [name for name in rewrites if name in OF_ONE_STEP]
        if wrong:
            raise RecipeError(
                f"{' and '.join(wrong)}: right for one step only, and [sampler] takes {self.steps}; leave out the one "
                "or the other"
            )


def sampler_of(steps: int | None, guidance: float | None, before: SamplerPlan | None = None) -> SamplerPlan | None:
    """What somebody asks for who names steps, guidance, or neither; what they do not name is as ``before``.

    Raises:
        RecipeError: guidance for one step.
    """
    if steps is None and guidance is None:
        return before
    if before is None and steps is None:
        raise RecipeError("guidance is for many steps; name their number, too: --steps 50")
    if before is None:
        return SamplerPlan("ddim", steps or 0, USUAL_GUIDANCE if guidance is None else guidance)
    return replace(
        before,
        steps=before.steps if steps is None else steps,
        guidance=before.guidance if guidance is None else guidance,
    )


@dataclass(frozen=True)
class DdimStep:
    """x becomes a·x + b·output of the UNet at ``timestep``."""

    __pydantic_config__ = _FORBID

    timestep: int
    a: float
    b: float


@dataclass(frozen=True)
class Ddim:
    """What an app needs to run the artifacts in many steps, from x ~ N(0, I) on.

    The UNet takes x twice, with the text of the empty prompt first and of the prompt second; of what it gives, u and c,
    ``u + guidance·(c - u)`` is the output of each step. The decoder takes the last x / ``scaling_factor``.
    """

    __pydantic_config__ = _FORBID

    guidance: float
    steps: tuple[DdimStep, ...]
    scaling_factor: float
    prediction_type: str

    def __post_init__(self) -> None:
        # Of a file that anybody may have written.
        if not 1 <= len(self.steps) <= _MOST_STEPS:
            raise ValueError(f"{len(self.steps)} steps, not from 1 to {_MOST_STEPS}")

    @property
    def recorded(self) -> tuple[int, ...]:
        """Places of the steps whose UNet calls a golden case holds, spread evenly over all."""
        return _spread(len(self.steps))

    def agrees(self, plan: SamplerPlan | None) -> bool:
        """Whether this is what a recipe asks for."""
        own = ("ddim", len(self.steps), self.guidance)
        return plan is not None and (plan.kind, plan.steps, plan.guidance) == own


@dataclass(frozen=True)
class EulerStep:
    """The UNet takes ``scale``·x at ``timestep``; x becomes a·x + b·output."""

    __pydantic_config__ = _FORBID

    timestep: float
    scale: float
    a: float
    b: float


@dataclass(frozen=True)
class Euler:
    """What an app needs to run the artifacts in many steps of Euler's method, from ``start``·x with x ~ N(0, I) on.

    Guidance and the decoder's input are as for :class:`Ddim`.
    """

    __pydantic_config__ = _FORBID

    guidance: float
    start: float
    steps: tuple[EulerStep, ...]
    scaling_factor: float
    prediction_type: str

    def __post_init__(self) -> None:
        # Of a file that anybody may have written.
        if not 1 <= len(self.steps) <= _MOST_STEPS:
            raise ValueError(f"{len(self.steps)} steps, not from 1 to {_MOST_STEPS}")

    @property
    def recorded(self) -> tuple[int, ...]:
        """As for :class:`Ddim`."""
        return _spread(len(self.steps))

    def agrees(self, plan: SamplerPlan | None) -> bool:
        """Whether this is what a recipe asks for."""
        own = ("euler", len(self.steps), self.guidance)
        return plan is not None and (plan.kind, plan.steps, plan.guidance) == own


ManySteps = Ddim | Euler


def _spread(steps: int) -> tuple[int, ...]:
    """Places of a few steps, the first and the last among them."""
    count = min(_RECORDED, steps)
    return tuple(round(place * (steps - 1) / max(count - 1, 1)) for place in range(count))


def steps_in_words(steps: ManySteps | None) -> str:
    """``one step``, or how many with which guidance."""
    if steps is None:
        return "one step"
    how = " of Euler's method" if isinstance(steps, Euler) else ""
    return f"{len(steps.steps)} steps{how} with guidance {steps.guidance:g}"
