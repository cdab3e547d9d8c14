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
    """Return a line where a model is to take one step and was not trained for it, or where guidance doubles the cost.

    Raises:
        ConfigError: the checkpoint's schedule has no such steps.
    """
    family, steps = family_of(config), steps_of(config, plan)
    if steps is not None:
        denoiser = family.denoised.node
        cost = f"guidance {steps.guidance:g}: each of {len(steps.steps)} calls of the {denoiser} computes two samples"
        return f"{cost}; --guidance 1 makes one of them, without guidance" if steps.is_guided else None
    # Turbo and Lightning models begin at the last timestep, as "trailing" does.
    distilled = config.method in _FEW_STEPS or config.schedule.timestep_spacing == "trailing"
    if family.form.one_step or distilled:
        return None
    return (
        "nothing says that this model was trained to make a picture in one step; if it was not, expect noise; "
        "give --steps, 20 for instance"
    )
