"""The reference runner: a component's torch module behind the interface of every artifact."""

from __future__ import annotations

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
