"""Samplers, which compute the decoder's input from noise and the UNet's outputs, and their constants for a checkpoint.

One step: x0 from a single UNet call (section 2 of arXiv 2311.16567). Many steps: by a method in a file of this folder,
with or without classifier-free guidance (arXiv 2207.12598).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from md_export.errors import ConfigError
from md_export.models.sampling.ddim import ddim
from md_export.models.sampling.dpmpp_2m import dpmpp_2m
from md_export.models.sampling.euler import euler, euler_ancestral
from md_export.models.sampling.flow_match_euler import flow_match_euler
from md_export.models.sampling.lcm import lcm
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.sampling.solver import check_solver
from md_export.models.sampling.tcd import tcd
from md_export.models.sampling.trajectory import Trajectory
from md_export.spec.names import Method
from md_export.spec.sampler import ManySteps, OneStep, SamplerPlan, Step
from md_export.spec.tensors import Array, Float32

if TYPE_CHECKING:
    from md_export.models.config import ModelConfig

Constants = OneStep | ManySteps
TRAJECTORIES: Final[Mapping[Method, Callable[[ScheduleConfig, int], Trajectory]]] = {
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "lcm": lcm,
    "tcd": tcd,
    "flow_match_euler": flow_match_euler,
}

# Sampling method of each supported scheduler class of diffusers. Other schedulers use DDIM in many steps.
SCHEDULERS: Final[Mapping[str, Method]] = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "FlowMatchEulerDiscreteScheduler": "flow_match_euler",
}


def one_step(config: ModelConfig) -> OneStep:
    """Return the checkpoint's constants for one step."""
    timestep = config.variant.timestep
    timestep = config.schedule.last_timestep if timestep is None else timestep
    a, b = config.schedule.x0_at(timestep)
    return OneStep(timestep, a, b, config.vae.scaling_factor, config.schedule.prediction_type)


def steps_of(config: ModelConfig, plan: SamplerPlan | None) -> ManySteps | None:
    """Return the checkpoint's constants for the steps of a recipe; None for one step.

    Raises:
        ConfigError: the checkpoint's schedule does not support the steps.
    """
    if plan is None:
        return None
    schedule = config.schedule
    method = plan.kind or config.method or "ddim"
    check_solver(
        schedule,
        method,
        -math.log(schedule.noise_levels([schedule.last_timestep])[0]),
        schedule.prediction_type == "v_prediction",
    )
    made = TRAJECTORIES[method](schedule, plan.steps)
    scaling_factor, prediction = config.vae.scaling_factor, schedule.prediction_type
    embedded = config.embedded_guidance is not None
    guidance = plan.guidance_with(method, embedded)
    if plan.negative is not None and (embedded or guidance == 1):
        raise ConfigError(
            f"[sampler] negative: a negative prompt needs guidance, and {method} runs without; leave out one of the two"
        )
    return ManySteps(method, guidance, made.start, made.steps, scaling_factor, prediction, plan.negative, embedded)


@dataclass(frozen=True)
class SamplerState:
    """State of a sampler: x ``[1, C, h, w]``, and the last step's estimate of x0."""

    x: Float32
    x0: Float32


@dataclass(frozen=True)
class Sampler:
    """A sampling method from noise to x0: the only step, or all of many. Steps are counted from 0.

    Attributes:
        constants: constants that an app needs for the same steps.
    """

    constants: Constants

    @property
    def steps(self) -> tuple[Step, ...]:
        """Constants of each step, starting with the noisiest."""
        one = self.constants
        return (Step(float(one.timestep), one.a, one.b),) if isinstance(one, OneStep) else one.steps

    @property
    def takes_many(self) -> bool:
        """Whether it samples in many steps, so that values belong to one of them."""
        return isinstance(self.constants, ManySteps)

    @property
    def guidance(self) -> float | None:
        """Scale of classifier-free guidance; None if each call gets only the prompt."""
        many = self.constants
        return many.guidance if isinstance(many, ManySteps) and many.is_guided else None

    @property
    def scaling_factor(self) -> float:
        """Factor that latents are divided by before decoding."""
        return self.constants.scaling_factor

    @property
    def fresh_noise(self) -> int:
        """Number of steps that add new noise."""
        return sum(step.noise > 0 for step in self.steps)

    def start(self, noise: Array) -> SamplerState:
        """Return the state before the first step: noise of the first level."""
        start = self.constants.start if isinstance(self.constants, ManySteps) else 1.0
        x = np.float32(start) * noise.astype(np.float32, copy=False)
        return SamplerState(x, np.zeros_like(x))

    def unet_input(self, number: int, state: SamplerState) -> Float32:
        """Return the UNet's input for a step."""
        return np.float32(self.steps[number].scale) * state.x

    def step(self, number: int, state: SamplerState, output: Float32, fresh: Array | None = None) -> SamplerState:
        """Return the state after a step, given the UNet's output.

        The sums are in float32: a single step with ``epsilon`` multiplies the output's error by 14.6.

        Args:
            fresh: noise ``[n, C, h, w]`` for all steps that add noise.
        """
        step = self.steps[number]
        x = linear(step.a, step.b, state.x, output)
        if step.earlier:
            x = x + np.float32(step.earlier) * state.x0
        if step.noise and fresh is not None:
            before = sum(other.noise > 0 for other in self.steps[:number])
            x = x + np.float32(step.noise) * fresh[before : before + 1].astype(np.float32)
        return SamplerState(x, linear(step.x0_of_x, step.x0_of_output, state.x, output))


def linear(a: float, b: float, x: Float32, output: Float32) -> Float32:
    """Return a·x + b·output, computed in float32."""
    return (np.float32(a) * x + np.float32(b) * output).astype(np.float32)
