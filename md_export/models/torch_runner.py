"""The reference runner: a component's torch module behind the interface of every artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from md_export.models.adapter import RESIDUAL
from md_export.models.graph import ALL_COMPONENTS, COMPONENTS, ModelConfig
from md_export.spec.names import CONTROLNET
from md_export.spec.tensors import Array, Arrays

_IN_TURN = ("unet", CONTROLNET)


class TorchRunner:
    """Runs a float32 module on the CPU; names and shapes as in ALL_COMPONENTS. A UNet does without residuals, too."""

    def __init__(self, component: str, module: nn.Module, config: ModelConfig) -> None:
        self.module = module
        self.inputs = ALL_COMPONENTS[component].inputs(config)
        self.outputs = ALL_COMPONENTS[component].outputs(config)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once, without gradients."""
        names = [spec.name for spec in self.inputs if spec.name in inputs or not spec.name.startswith(RESIDUAL)]
        with torch.inference_mode():
            made = self.module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names))
        values = made if isinstance(made, tuple) else (made,)
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, values, strict=True)}


class OneAtATime(Mapping[str, TorchRunner]):
    """Runners by component, loaded when they are asked for; the one before is dropped first.

    Memory is that of the largest, where a case goes through all of them; each case loads them again. UNet and
    ControlNet are held together, since many steps call them in turn.
    """

    def __init__(self, load: Callable[[str], TorchRunner]) -> None:
        self._load = load
        self._held: dict[str, TorchRunner] = {}

    def __getitem__(self, component: str) -> TorchRunner:
        if component not in self._held:
            together = self._held if component in _IN_TURN else {}
            self._held = {name: runner for name, runner in together.items() if name in _IN_TURN}
            self._held[component] = self._load(component)
        return self._held[component]

    def __iter__(self) -> Iterator[str]:
        return iter(COMPONENTS)

    def __len__(self) -> int:
        return len(COMPONENTS)
