"""Advice for users on the number of steps and the sampler of a model."""

from __future__ import annotations

from typing import Final

from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.sampling.sampler import steps_of
from md_export.spec.names import Method
from md_export.spec.sampler import SamplerPlan

# Samplers of models that were distilled to few steps or to one.
_FEW_STEPS: Final[tuple[Method, ...]] = ("lcm", "tcd")


def advice_on_steps(config: ModelConfig, plan: SamplerPlan | None) -> str | None:
    """Return advice on one step without training for it, a sampler that differs from the model's, and guidance.

    Raises:
        ConfigError: the checkpoint's schedule does not support the steps.
    """
    family, steps = family_of(config), steps_of(config, plan)
    if plan is not None and steps is not None:
        lines = []
        if config.method is None and plan.kind is None:
            lines.append(
                f"the checkpoint's scheduler is not supported; {steps.method} is used instead; "
                "choose a sampler with --sampler"
            )
        if steps.is_guided:
            calls = f"each of {len(steps.steps)} calls of the {family.denoised.node} computes two samples"
            lines.append(f"guidance {steps.guidance:g}: {calls}; --guidance 1 turns guidance off and halves this")
        return "\n".join(lines) or None
    # Turbo and Lightning models start at the last timestep: "trailing" spacing.
    distilled = config.method in _FEW_STEPS or config.schedule.timestep_spacing == "trailing"
    if family.form.one_step or distilled:
        return None
    return (
        "the configs do not show that this model was trained to make a picture in one step; if it was not, expect "
        "noise; give --steps, for example 20"
    )
