"""Samplers of one or many steps: the recipe's plan, and the constants that an app needs to run the steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict

from md_export.errors import RecipeError

_FORBID: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_MOST_STEPS: Final = 1000
_MOST_TIMESTEPS: Final = 100_000
_LARGEST_GUIDANCE: Final = 100.0
# Default guidance, as in Stable Diffusion.
USUAL_GUIDANCE: Final = 7.5
# Number of UNet calls that a golden case of many steps stores, including the first and the last.
_RECORDED: Final = 4
# Rewrites that fold one timestep into the weights, so they are right only at that timestep.
OF_ONE_STEP: Final = ("fold_timestep", "fold_x0")


@dataclass(frozen=True)
class OneStep:
    """Constants for an app that takes one step: x0 = a·x_T + b·output at ``timestep``; decode x0 / scaling_factor."""

    timestep: int
    a: float
    b: float
    scaling_factor: float
    prediction_type: str


@dataclass(frozen=True)
class NoiseSchedule:
    """Fields of ``scheduler_config.json`` that define the noise of every timestep: where to start from a picture."""

    __pydantic_config__ = _FORBID

    num_train_timesteps: int
    beta_start: float
    beta_end: float
    beta_schedule: Literal["linear", "scaled_linear"]

    def __post_init__(self) -> None:
        # Check the ranges, because the values come from an untrusted file.
        if not 1 <= self.num_train_timesteps <= _MOST_TIMESTEPS or not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"no schedule: {self}")


@dataclass(frozen=True)
class SamplerPlan:
    """The ``[sampler]`` table of a recipe; without it pictures are made in one step.

    Attributes:
        kind: DDIM without added noise (arXiv 2010.02502, eta 0), or Euler's method (arXiv 2206.00364); timesteps are
            spaced as in the checkpoint's scheduler.
        steps: number of UNet calls for a picture.
        guidance: factor of classifier-free guidance (arXiv 2207.12598): each call gets the empty prompt and the prompt,
            and the step uses u + guidance·(c - u).
        cases: largest number of golden cases, because torch computes all steps for each.
    """

    __pydantic_config__ = _FORBID

    kind: Literal["ddim", "euler"]
    steps: int
    guidance: float
    cases: int = 4

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for values that cannot be used for sampling."""
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
        """Raise :class:`RecipeError` for rewrites that are valid only for one step."""
        wrong = [name for name in rewrites if name in OF_ONE_STEP]
        if wrong:
            raise RecipeError(
                f"{' and '.join(wrong)}: right for one step only, and [sampler] takes {self.steps}; leave out the one "
                "or the other"
            )


def sampler_of(steps: int | None, guidance: float | None, before: SamplerPlan | None = None) -> SamplerPlan | None:
    """Return the plan for the given steps and guidance; a value that is None is taken from ``before``.

    Raises:
        RecipeError: guidance was given for one step.
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


class _InManySteps:
    """What constants of many steps have in common, whatever the method."""

    KIND: ClassVar[Literal["ddim", "euler"]]
    guidance: float
    steps: tuple[Any, ...]

    def __post_init__(self) -> None:
        # Check the ranges, because the values come from an untrusted file.
        if not 1 <= len(self.steps) <= _MOST_STEPS:
            raise ValueError(f"{len(self.steps)} steps, not from 1 to {_MOST_STEPS}")

    @property
    def recorded(self) -> tuple[int, ...]:
        """Indices of the steps whose UNet calls a golden case stores: a few, spread evenly, with the first and last."""
        steps = len(self.steps)
        count = min(_RECORDED, steps)
        return tuple(round(place * (steps - 1) / max(count - 1, 1)) for place in range(count))

    def agrees(self, plan: SamplerPlan | None) -> bool:
        """Whether these constants match the plan of a recipe."""
        own = (self.KIND, len(self.steps), self.guidance)
        return plan is not None and (plan.kind, plan.steps, plan.guidance) == own


@dataclass(frozen=True)
class DdimStep:
    """One step: x becomes a·x + b·output, where output is the UNet's at ``timestep``."""

    __pydantic_config__ = _FORBID

    timestep: int
    a: float
    b: float


@dataclass(frozen=True)
class Ddim(_InManySteps):
    """Constants for an app that runs the artifacts in many DDIM steps, starting from x ~ N(0, I).

    The UNet gets x twice, first with the text of the empty prompt and then with that of the prompt. From its outputs
    u and c, ``u + guidance·(c - u)`` is the output of each step. The decoder gets the last x / ``scaling_factor``.
    """

    __pydantic_config__ = _FORBID
    KIND = "ddim"

    guidance: float
    steps: tuple[DdimStep, ...]
    scaling_factor: float
    prediction_type: str


@dataclass(frozen=True)
class EulerStep:
    """One step: the UNet gets ``scale``·x at ``timestep``; x becomes a·x + b·output."""

    __pydantic_config__ = _FORBID

    timestep: float
    scale: float
    a: float
    b: float


@dataclass(frozen=True)
class Euler(_InManySteps):
    """Constants for an app that runs the artifacts in many steps of Euler's method, from ``start``·x with x ~ N(0, I).

    Guidance and the decoder's input are as in :class:`Ddim`.
    """

    __pydantic_config__ = _FORBID
    KIND = "euler"

    guidance: float
    start: float
    steps: tuple[EulerStep, ...]
    scaling_factor: float
    prediction_type: str


ManySteps = Ddim | Euler


def steps_in_words(steps: ManySteps | None) -> str:
    """Describe the steps in words: ``one step``, or their number, method and guidance."""
    if steps is None:
        return "one step"
    how = " of Euler's method" if isinstance(steps, Euler) else ""
    return f"{len(steps.steps)} steps{how} with guidance {steps.guidance:g}"
