"""The reference runner: a component's torch module behind the interface of every artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.graph import Family
from md_export.spec.tensors import Array, Arrays


class TorchRunner:
    """Runs a float32 module on the CPU; names and shapes as in its row of the graph."""

    def __init__(self, component: str, module: nn.Module, config: ModelConfig) -> None:
        self.module = module
        self._row = family_of(config)[component]
        self.inputs, self.outputs = self._row.input_specs(config), self._row.output_specs(config)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once, without gradients; inputs that add something may be left out."""
        names = [spec.name for spec in self.inputs if spec.name in inputs or not self._row.may_lack(spec.name)]
        with torch.inference_mode():
            made = self.module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in names))
        values = made if isinstance(made, tuple) else (made,)
        return {spec.name: value.numpy() for spec, value in zip(self.outputs, values, strict=True)}


class OneAtATime(Mapping[str, TorchRunner]):
    """Runners by component, loaded when they are asked for; the one before is dropped first.

    Memory is that of the largest, where a picture goes through all of them; each picture loads them again. Those that
    every step calls are held together.
    """

    def __init__(self, family: Family, load: Callable[[str], TorchRunner]) -> None:
        self._family = family
        self._load = load
        self._held: dict[str, TorchRunner] = {}

    def __getitem__(self, component: str) -> TorchRunner:
        if component not in self._held:
            in_turn = [row.name for row in self._family.components if row.called == "per step"]
            kept = in_turn if component in in_turn else []
            self._held = {name: runner for name, runner in self._held.items() if name in kept}
            self._held[component] = self._load(component)
        return self._held[component]

    def __iter__(self) -> Iterator[str]:
        return iter(self._family.rows)

    def __len__(self) -> int:
        return len(self._family.rows)
