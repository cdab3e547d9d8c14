"""Cotangents from the inputs of later components back to the output of the component that feeds them.

What lies between components is numpy: layouts, the sampler's only step, and the joining of texts. It gives each element
of an input an affine function of at most one element of an output, which a few evaluations tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from md_export.engine.search.probe import Probe
from md_export.errors import RuntimeFault
from md_export.parity.golden.case import GoldenCase
from md_export.spec.tensors import Array

# Digits of an element's number, each small enough to survive float32 arithmetic.
_BASE: Final = 256


@dataclass(frozen=True)
class Wire:
    """An input of a later component: element i is ``scale[i]`` times output element ``source[i]``, plus a constant."""

    source: NDArray[np.int64]
    scale: NDArray[np.float32]


class Wiring:
    """Wires from a component's outputs, joined in order, to the inputs of all later components that they feed."""

    def __init__(self, probe: Probe, component: str, case: GoldenCase) -> None:
        """``case``: any golden case; constants differ between cases, the rest does not.

        Raises:
            RuntimeFault: an input depends on the output in another way.
        """
        self._probe, self._component, self._case = probe, component, case
        golden = probe.parts[component].wanted(case)
        self._shapes = {name: golden[name].shape for name in golden}
        self._size = sum(value.size for value in golden.values())
        zero, one = self._given(np.zeros(self._size)), self._given(np.ones(self._size))
        self.wires: dict[tuple[str, str], Wire] = {}
        scales = {name: one[name] - zero[name] for name in zero if not np.array_equal(one[name], zero[name])}
        sources = {name: np.zeros(scale.size, np.int64) for name, scale in scales.items()}
        place = 1
        while place < self._size:
            digits = self._given(np.arange(self._size) // place % _BASE)
            for name, scale in scales.items():
                ratio = np.divide(digits[name] - zero[name], scale, out=np.zeros_like(scale), where=scale != 0)
                sources[name] += place * np.rint(ratio).astype(np.int64)
            place *= _BASE
        drawn = np.random.default_rng(0).standard_normal(self._size).astype(np.float32)
        expected = self._given(drawn)
        for name, scale in scales.items():
            source = sources[name].clip(0, self._size - 1)
            if not np.allclose(zero[name] + scale * drawn[source], expected[name], rtol=1e-3, atol=1e-3):
                raise RuntimeFault(f"{component} feeds {' '.join(name)} by more than a scale and an offset")
            self.wires[name] = Wire(source, scale)

    def _given(self, values: NDArray[Any]) -> dict[tuple[str, str], NDArray[np.float32]]:
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes.values()])[:-1]
        parts = np.split(values.astype(np.float32), ends)
        outputs = {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        found: Mapping[tuple[str, str], Array] = self._probe.inputs_after(self._component, self._case, outputs)
        return {name: value.astype(np.float32).reshape(-1) for name, value in found.items()}

    def pull_back(self, cotangents: Mapping[tuple[str, str], Tensor]) -> dict[str, Tensor]:
        """Return the cotangents of the outputs, by name, for cotangents of the inputs of later components."""
        total = np.zeros(self._size)
        for name, wire in self.wires.items():
            if name in cotangents:
                weights = wire.scale * cotangents[name].numpy().reshape(-1)
                total += np.bincount(wire.source, weights, self._size)
        ends = np.cumsum([int(np.prod(shape)) for shape in self._shapes.values()])[:-1]
        parts = torch.from_numpy(total.astype(np.float32)).tensor_split(ends.tolist())
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
