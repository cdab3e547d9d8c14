"""Components with the inputs that they really get: from a prompt through every component to the picture."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from md_export.checkpoint import open_checkpoint
from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS, family_of
from md_export.models.sampling.generate import TorchRunner, draw_noise
from md_export.models.sampling.sampler import Sampler, one_step
from md_export.models.tokenizers import tokenize
from md_export.models.walk import Runners, walk
from md_export.spec.sampler import OneStep
from md_export.spec.shipped_files import nano_checkpoint
from rewrites.forms import Subject

PROMPT = "a large red circle on the left, a small blue square on the right"


def nano() -> tuple[ModelConfig, dict[str, nn.Module], np.ndarray]:
    """The trained checkpoint."""
    checkpoint = open_checkpoint(nano_checkpoint())
    modules = {name: checkpoint.module(name) for name in COMPONENTS}
    return checkpoint.config, modules, tokenize(checkpoint.tokenizer_dir, PROMPT, 77)


def other(config: ModelConfig) -> tuple[ModelConfig, dict[str, nn.Module], np.ndarray]:
    """Random weights, the affines of the norms too: some exactly 0, as after pruning."""
    torch.manual_seed(5)
    modules = {name: component.build(config).eval().requires_grad_(False) for name, component in COMPONENTS.items()}
    for module in modules.values():
        for norm in (layer for layer in module.modules() if isinstance(layer, (nn.LayerNorm, nn.GroupNorm))):
            nn.init.normal_(norm.weight, 1.0, 0.3)[0] = 0.0
            nn.init.normal_(norm.bias, 0.0, 0.3)
    return config, modules, np.random.default_rng(5).integers(0, 600, (1, 77), dtype=np.int32)


def subjects(config: ModelConfig, modules: dict[str, nn.Module], input_ids: np.ndarray) -> dict[str, Subject]:
    """Each component with its inputs and output on the way from ``input_ids`` to a picture."""
    step = one_step(config)
    runners = {name: TorchRunner(name, module, config) for name, module in modules.items()}
    begun = {"given.input_ids": input_ids, "given.noise": draw_noise(3, config.latent_shape)}
    rows = tuple(COMPONENTS.values())
    (made,) = walk(family_of(config), rows, Runners(runners), [begun], Sampler(step))
    given = {name: tuple(component.read(made).values()) for name, component in COMPONENTS.items()}
    outputs = {"text_encoder": "last_hidden_state", "unet": "out_sample", "vae_decoder": "image"}
    expected = {name: made[f"{name}.{output}"] for name, output in outputs.items()}
    return {
        name: Subject(
            name,
            copy.deepcopy(modules[name]),
            COMPONENTS[name].input_specs(config),
            COMPONENTS[name].output_specs(config),
            {spec.name: array for spec, array in zip(COMPONENTS[name].input_specs(config), given[name], strict=True)},
            expected[name],
            step,
        )
        for name in COMPONENTS
    }


@pytest.fixture(scope="session")
def subject(other_config: ModelConfig) -> Callable[[str, str], Subject]:
    """``subject("nano" | "other", component)``, a fresh copy of the module each time."""
    torch.set_num_threads(1)
    made = {"nano": subjects(*nano()), "other": subjects(*other(other_config))}

    def get(model: str, component: str) -> Subject:
        return made[model][component].fresh()

    return get


@pytest.fixture(scope="session")
def step() -> OneStep:
    """Of a checkpoint that predicts the noise with Stable Diffusion's schedule."""
    return OneStep(999, 14.64881, -14.61464, 0.5, "epsilon")
