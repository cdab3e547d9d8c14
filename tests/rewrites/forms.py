"""What the tests of form rewrites share: a subject, how exact a rewrite is, and what Core ML makes of it."""

from __future__ import annotations

import collections
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from md_export.artifact import OneStep, RewriteRecord
from md_export.parity.metrics import compare
from md_export.recipe import QuantScheme
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.targets.contract import LoweringJob
from md_export.tensors import Array, TensorSpec

# Float32 rounding through a whole component; the nearest mutation of these tests stays 20 dB below.
EXACT_DB: Final = 110.0
FLOAT16: Final = QuantScheme("float16", "float16")


@dataclass(frozen=True)
class Subject:
    """A component, one input as it occurs, and the output of the untouched module."""

    component: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arrays: dict[str, Array]
    expected: Array
    step: OneStep

    def fresh(self) -> Subject:
        """With a module that may be rewritten."""
        return replace(self, module=copy.deepcopy(self.module))

    def rewrite(self, *names: str) -> tuple[RewriteRecord, ...]:
        return apply_rewrites(names, self.component, self.module, self.step, Consent())

    def run(self, without: tuple[str, ...] = ()) -> Array:
        arrays = [array for name, array in self.arrays.items() if name not in without]
        with torch.inference_mode():
            out: torch.Tensor = self.module(*(torch.from_numpy(array) for array in arrays))
        return out.numpy()

    def snr_db(self, without: tuple[str, ...] = ()) -> float:
        """Of the module as it is now against what it computed before."""
        return compare(self.run(without), self.expected).snr_db


@dataclass(frozen=True)
class Graph:
    """A Core ML program in float16: executed ops by kind, ranks of what they return, SNR of its output."""

    kinds: dict[str, int]
    ranks: tuple[int, ...]
    weights: tuple[str, ...]
    modules: dict[str, str]
    snr_db: float

    @property
    def ops(self) -> int:
        return sum(self.kinds.values())

    def module_of(self, weight: str) -> str:
        return self.modules.get(weight.removesuffix("_to_fp16"), "")


def convert(subject: Subject, names: tuple[str, ...], workdir: Path) -> Graph:
    """Lower a rewritten subject and execute the program."""
    from md_export.targets.coreml import mil
    from md_export.targets.coreml.lower import lower
    from md_export.targets.coreml.package import main_operations, read_spec

    dropped = {name for rewrite in names for name in REWRITES[rewrite].drops}
    inputs = tuple(spec for spec in subject.inputs if spec.name not in dropped)
    arrays = {spec.name: np.array(subject.arrays[spec.name]) for spec in inputs}
    job = LoweringJob(subject.component, subject.module, inputs, subject.outputs, arrays, FLOAT16, (), workdir)
    lowered = lower(job)
    operations = [op for op in main_operations(read_spec(lowered.package)) if op.type != "const"]
    (out,) = mil.load(lowered.package).predict(arrays).values()
    return Graph(
        kinds=dict(collections.Counter(op.type for op in operations)),
        ranks=tuple(_rank(output) for op in operations for output in op.outputs),
        weights=tuple(op.inputs["weight"].arguments[0].name for op in operations if op.type == "conv"),
        modules=lowered.modules,
        snr_db=compare(out, subject.expected).snr_db,
    )


def _rank(output: Any) -> int:
    return len(output.type.tensorType.dimensions)
