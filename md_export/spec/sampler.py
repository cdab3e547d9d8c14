"""Sampling in one or many steps: the recipe's plan, and the constants that an app needs to run the steps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final, Literal

from pydantic import ConfigDict

from md_export.errors import RecipeError
from md_export.spec.names import MOST_STEPS, Method

_FORBID: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_MOST_TIMESTEPS: Final = 100_000
_LARGEST_GUIDANCE: Final = 100.0
# Default guidance of Stable Diffusion.
_USUAL_GUIDANCE: Final = 7.5
# Default of diffusers' LatentConsistencyModelPipeline, for UNets with the guidance as an input.
EMBEDDED_GUIDANCE: Final = 8.5
# Methods for distilled models, trained to work without guidance.
_UNGUIDED: Final[tuple[Method, ...]] = ("lcm", "tcd")
# Number of UNet calls that a golden case of many steps stores, including the first and the last.
_RECORDED: Final = 4
# Rewrites that fold one timestep into the weights, so they are valid only for that timestep.
ONE_STEP_REWRITES: Final = ("fold_timestep", "fold_x0")


@dataclass(frozen=True)
class OneStep:
    """Constants for an app that takes one step: x0 = a·x_T + b·output at ``timestep``; decode x0 / scaling_factor."""

    timestep: int
    a: float
    b: float
    scaling_factor: float
    prediction_type: str

    @property
    def notes(self) -> dict[str, str]:
        """Constants as metadata of an artifact; floats parse back exactly."""
        return {
            "prediction_type": self.prediction_type,
            "timestep": str(self.timestep),
            "a": repr(float(self.a)),
            "b": repr(float(self.b)),
            "scaling_factor": repr(float(self.scaling_factor)),
        }


@dataclass(frozen=True)
class NoiseSchedule:
    """Fields of ``scheduler_config.json`` that define the noise at each timestep; image-to-image starts from it."""

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
    """The ``[sampler]`` table of a recipe; a recipe without it samples in one step.

    Attributes:
        steps: number of UNet calls for a picture.
        kind: sampling method; None for that of the checkpoint's scheduler. That scheduler also sets the timesteps.
        guidance: factor of classifier-free guidance (arXiv 2207.12598): each call gets the empty or negative prompt and
            the prompt, and the step uses u + guidance·(c - u). 0 or 1: no guidance, and each call gets the prompt only.
            None: 7.5, but no guidance for LCM and TCD.
        cases: maximum number of golden cases, because torch computes all steps for each.
        negative: negative prompt of the golden cases and of requests that give none; empty by default.
    """

    __pydantic_config__ = _FORBID

    steps: int
    kind: Method | None = None
    guidance: float | None = None
    cases: int = 4
    negative: str | None = None

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for values that cannot be used for sampling."""
        if not 1 <= self.steps <= MOST_STEPS:
            raise RecipeError(f"[sampler] steps: {self.steps!s:.20} is not from 1 to {MOST_STEPS}")
        if self.guidance is not None and self.guidance != 0 and not 1 <= self.guidance <= _LARGEST_GUIDANCE:
            raise RecipeError(
                f"[sampler] guidance: {self.guidance:g} is neither 0 or 1, which mean no guidance, nor up to "
                f"{_LARGEST_GUIDANCE:g}"
            )
        if self.negative is not None and self.guidance in (0, 1):
            raise RecipeError("[sampler] negative has no effect without guidance; leave it out, or set guidance")
        if self.cases < 1:
            raise RecipeError("[sampler] cases: less than 1, so there would be nothing to compare; give 4, for example")

    def guidance_with(self, method: Method, embedded: bool) -> float:
        """Return the guidance for a method: that of the plan, else the method's default; 1 for no guidance.

        ``embedded``: the guidance is an input of the UNet, which then gets one sample per call.
        """
        usual = EMBEDDED_GUIDANCE if embedded else 1.0 if method in _UNGUIDED else _USUAL_GUIDANCE
        return usual if self.guidance is None else max(self.guidance, 1.0)

    def check_rewrites(self, rewrites: tuple[str, ...]) -> None:
        """Raise :class:`RecipeError` for rewrites that are valid only for one step."""
        wrong = [name for name in rewrites if name in ONE_STEP_REWRITES]
        if wrong:
            raise RecipeError(
                f"{' and '.join(wrong)}: valid for one step only, and [sampler] takes {self.steps}; leave out one "
                "of the two"
            )


def sampler_of(
    steps: int | None,
    guidance: float | None,
    kind: Method | None = None,
    before: SamplerPlan | None = None,
    negative: str | None = None,
) -> SamplerPlan | None:
    """Return the plan with the given values; a value that is None is taken from ``before``.

    Raises:
        RecipeError: guidance, a method or a negative prompt is given for one step.
    """
    if steps is None and before is None:
        if guidance is not None or kind is not None or negative is not None:
            raise RecipeError(
                "--guidance, --sampler and --negative-prompt are for many steps; name their number, too: --steps 50"
            )
        return None
    if before is None:
        return SamplerPlan(steps or 0, kind, guidance, negative=negative)
    return replace(
        before,
        steps=before.steps if steps is None else steps,
        kind=kind or before.kind,
        guidance=before.guidance if guidance is None else guidance,
        negative=before.negative if negative is None else negative,
    )


@dataclass(frozen=True)
class Step:
    """Constants of one step; ``output`` is the UNet's output for the sample ``scale``·x at ``timestep``.

    x0 = x0_of_x·x + x0_of_output·output                                   used by the next step only
    x  = a·x + b·output + earlier·(x0 of the previous step) + noise·z      with z ~ N(0, I) drawn for each step
    """

    __pydantic_config__ = _FORBID

    timestep: float
    a: float
    b: float
    scale: float = 1.0
    noise: float = 0.0
    earlier: float = 0.0
    x0_of_x: float = 0.0
    x0_of_output: float = 0.0


@dataclass(frozen=True)
class ManySteps:
    """Constants for an app that samples in many steps, starting from x = ``start``·z with z ~ N(0, I).

    With ``guidance`` above 1 the UNet gets each sample twice, first with the embeddings of the empty or negative prompt
    and then with those of the prompt. With its outputs u and c, the output of a step is ``u + guidance·(c - u)``. The
    decoder gets the last x / ``scaling_factor``. ``negative``: the recipe's negative prompt, for requests without one.
    ``embedded``: the guidance is embedded in the UNet, which gets each sample once.
    """

    __pydantic_config__ = _FORBID

    method: Method
    guidance: float
    start: float
    steps: tuple[Step, ...]
    scaling_factor: float
    prediction_type: str
    negative: str | None = None
    embedded: bool = False

    def __post_init__(self) -> None:
        # Check the ranges, because the values come from an untrusted file.
        if not 1 <= len(self.steps) <= MOST_STEPS:
            raise ValueError(f"{len(self.steps)} steps, not from 1 to {MOST_STEPS}")

    @property
    def is_guided(self) -> bool:
        """Whether each UNet call gets the sample with both prompts."""
        return self.guidance > 1 and not self.embedded

    @property
    def notes(self) -> dict[str, str]:
        """Constants as metadata of an artifact, those of the steps joined by commas.

        Constants with the default value in all steps are left out.
        """
        columns = {
            field.name: [getattr(step, field.name) for step in self.steps]
            for field in fields(Step)
            if any(getattr(step, field.name) != field.default for step in self.steps)
        }
        return {
            "sampler": self.method,
            "guidance": repr(1.0 if self.embedded else float(self.guidance)),
            **({"embedded_guidance": repr(float(self.guidance))} if self.embedded else {}),
            **({} if self.start == 1 else {"start": repr(float(self.start))}),
            **{name: ",".join(map(_number, values)) for name, values in columns.items()},
        }

    @property
    def recorded(self) -> tuple[int, ...]:
        """Indices of the steps for which a golden case stores the UNet call: up to 4, evenly spread, first to last."""
        steps = len(self.steps)
        count = min(_RECORDED, steps)
        return tuple(round(place * (steps - 1) / max(count - 1, 1)) for place in range(count))

    def check_rewrites(self, rewrites: tuple[str, ...]) -> None:
        """Raise :class:`RecipeError` for the rewrite ``tabulate_timestep`` if a timestep is not a whole number."""
        if "tabulate_timestep" in rewrites and not all(step.timestep.is_integer() for step in self.steps):
            raise RecipeError(
                f"tabulate_timestep has a row for each whole timestep, and {self.method} has others here; "
                "leave it out, take --sampler dpmpp_2m, or in scheduler/scheduler_config.json set timestep_spacing to "
                "leading and the noise levels of Karras and others (use_…_sigmas) to false"
            )

    def agrees(self, plan: SamplerPlan | None) -> bool:
        """Return whether these constants match the plan of a recipe."""
        return (
            plan is not None
            and plan.kind in (None, self.method)
            and (len(self.steps), self.guidance) == (plan.steps, plan.guidance_with(self.method, self.embedded))
            and self.negative == plan.negative
        )


def _number(value: float) -> str:
    """Return a number as text; a whole one, as most timesteps are, without decimals."""
    return str(int(value)) if value.is_integer() else repr(float(value))


def steps_in_words(steps: ManySteps | None) -> str:
    """Describe the steps in words: ``one step``, or their number, method and guidance."""
    if steps is None:
        return "one step"
    guidance = f"guidance {steps.guidance:g}" if steps.is_guided or steps.embedded else "no guidance"
    guidance += " embedded in the UNet" if steps.embedded else ""
    return f"{len(steps.steps)} steps of {steps.method} with {guidance}"


def flags_of(plan: SamplerPlan | None) -> str:
    """Return the command-line options for a plan, each followed by a space."""
    if plan is None:
        return ""
    method = "" if plan.kind is None else f"--sampler {plan.kind} "
    return f"--steps {plan.steps} {method}" + ("" if plan.guidance is None else f"--guidance {plan.guidance:g} ")
