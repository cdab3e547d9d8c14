"""Runtimes that answer wrongly: what an artifact gives is changed on its way to the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from md_export.executing import Execution
from md_export.parity.selftest.sandbox import NotApplicable
from md_export.parity.verify import Execute
from md_export.tensors import Array, Arrays

# Takes a runtime and gives one that is wrong.
Distortion = Callable[[Execute], Execute]


def each_output(change: Callable[[Array], Array]) -> Distortion:
    """Every output goes through ``change``."""

    def distort(execute: Execute) -> Execute:
        def run(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
            made = execute(target, path, batches)
            outputs = [{name: change(value) for name, value in item.items()} for item in made.outputs]
            return dataclasses.replace(made, outputs=outputs)

        return run

    return distort


def outputs_exchanged(execute: Execute) -> Execute:
    """The first prompt gets the second's answer, and the other way round."""

    def run(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        made = execute(target, path, batches)
        return dataclasses.replace(made, outputs=[made.outputs[place] for place in _pairs(len(made.outputs))])

    return run


def inputs_exchanged(execute: Execute) -> Execute:
    """The first input of each pair of runs goes to the other run; what other inputs there are stay."""

    def run(target: str, path: Path, batches: Sequence[Arrays]) -> Execution:
        first = next(iter(batches[0]))
        mixed = [{**batches[i], first: batches[j][first]} for i, j in enumerate(_pairs(len(batches)))]
        return execute(target, path, mixed)

    return run


def _pairs(count: int) -> list[int]:
    """1, 0, 3, 2, …"""
    if count < 2:
        raise NotApplicable("one golden prompt has nothing to be exchanged with")
    return [place ^ 1 if place ^ 1 < count else place for place in range(count)]


def one_value(wrong: float) -> Callable[[Array], Array]:
    """Replace the value in the middle."""

    def change(value: Array) -> Array:
        changed = value.copy()
        changed.reshape(-1)[changed.size // 2] = wrong
        return changed

    return change


def transposed(value: Array) -> Array:
    """The last two axes exchanged, in the same shape."""
    if value.shape[-1] != value.shape[-2]:
        raise NotApplicable(f"an output of shape {list(value.shape)} has no two axes of one size")
    return np.ascontiguousarray(value.swapaxes(-1, -2))


def channels_last(value: Array) -> Array:
    """``[N, C, H, W]`` → ``[N, H, W, C]``, or the like for fewer axes."""
    return np.ascontiguousarray(np.moveaxis(value, 1, -1))


def broadcastable(value: Array) -> Array:
    """One row, which numpy would compare with the whole without a word."""
    return np.ascontiguousarray(value[..., :1])
