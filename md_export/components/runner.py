"""The reference runner: a component's torch module behind the interface of every artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from md_export.components import COMPONENTS, ModelConfig
from md_export.tensors import Array, Arrays


class TorchRunner:
    """Runs a float32 module on the CPU; names and shapes as in COMPONENTS."""

    def __init__(self, component: str, module: nn.Module, config: ModelConfig) -> None:
        self.module = module
        self.inputs = COMPONENTS[component].inputs(config)
        (self.output,) = COMPONENTS[component].outputs(config)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once, without gradients."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in self.inputs]
        with torch.inference_mode():
            value = self.module(*tensors)
        return {self.output.name: value.numpy()}


class OneAtATime(Mapping[str, TorchRunner]):
    """Runners by component, loaded when they are asked for; the one before is dropped first.

    Memory is that of the largest, where a case goes through all of them; each case loads them again.
    """

    def __init__(self, load: Callable[[str], TorchRunner]) -> None:
        self._load = load
        self._held: dict[str, TorchRunner] = {}

    def __getitem__(self, component: str) -> TorchRunner:
        if component not in self._held:
            self._held.clear()
            self._held[component] = self._load(component)
        return self._held[component]

    def __iter__(self) -> Iterator[str]:
        return iter(COMPONENTS)

    def __len__(self) -> int:
        return len(COMPONENTS)
