"""Advice on the steps of a model, for users who export it or make pictures with it."""

from __future__ import annotations

from typing import Final

from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.sampling.sampler import steps_of
from md_export.spec.names import Method
from md_export.spec.sampler import SamplerPlan

# Schedulers of models that were distilled to few steps or to one.
_FEW_STEPS: Final[tuple[Method, ...]] = ("lcm", "tcd")


def advice_on_steps(config: ModelConfig, plan: SamplerPlan | None) -> str | None:
    """Return a line on one step that a model was not trained for, on another sampler than its own, and on guidance.

    Raises:
        ConfigError: the checkpoint's schedule has no such steps.
    """
    family, steps = family_of(config), steps_of(config, plan)
    if plan is not None and steps is not None:
        lines = []
        if config.method is None and plan.kind is None:
            lines.append(
                f"no sampler here takes the steps of the checkpoint's scheduler; {steps.method} takes its place; "
                "name one with --sampler"
            )
        if steps.is_guided:
            calls = f"each of {len(steps.steps)} calls of the {family.denoised.node} computes two samples"
            lines.append(f"guidance {steps.guidance:g}: {calls}; --guidance 1 makes one of them, without guidance")
        return "\n".join(lines) or None
    # Turbo and Lightning models begin at the last timestep, as "trailing" does.
    distilled = config.method in _FEW_STEPS or config.schedule.timestep_spacing == "trailing"
    if family.form.one_step or distilled:
        return None
    return (
        "nothing says that this model was trained to make a picture in one step; if it was not, expect noise; "
        "give --steps, 20 for instance"
    )
