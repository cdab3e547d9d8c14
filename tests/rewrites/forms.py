"""What the tests of form rewrites share: a subject, how exact a rewrite is, and what Core ML makes of it."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from md_export.models.layers import Attention, Softmax
from md_export.models.vae import SpatialAttention
from md_export.parity.metrics import compare
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.spec.artifact import RewriteRecord
from md_export.spec.recipe import QuantScheme
from md_export.spec.sampler import OneStep
from md_export.spec.tensors import Array, TensorSpec
from md_export.targets.contract import LoweringJob

# Float32 rounding through a whole component; the nearest mutation of these tests stays 20 dB below.
EXACT_DB: Final = 110.0
FLOAT16: Final = QuantScheme("float16", "float16")


NORM_SHAPES: Final = [(1, 12, 5, 7), (2, 12, 1, 64), (1, 12, 1, 1)]
Apply = Callable[[nn.Module, OneStep], int]


def norm_of(affine: bool) -> nn.GroupNorm:
    torch.manual_seed(0)
    norm = nn.GroupNorm(3, 12, eps=1e-5, affine=affine).requires_grad_(False)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def check_norm(rewrite: Apply, step: OneStep, affine: bool, shape: tuple[int, ...]) -> None:
    """The rewritten GroupNorm is the same, and its eps is the norm's own."""
    norm = norm_of(affine)
    # So quiet that eps matters, and off centre.
    x = torch.randn(shape) * 3e-3 + 0.5
    expected = norm(x).numpy()
    assert rewrite(norm, step) == 1
    # The offset costs float32 some 7 of its 24 bits, in either form.
    assert compare(norm(x).numpy(), expected).snr_db >= EXACT_DB - 20
    norm.eps = 2e-5
    assert compare(norm(x).numpy(), expected).snr_db < EXACT_DB - 60


def check_batch_of_two(rewrite: Apply, step: OneStep, context_dim: int | None) -> None:
    """Attention between maps of a batch of two is the same; artifacts have a batch of one, which takes another way."""
    torch.manual_seed(0)
    attention = Attention(24, 8, context_dim, Softmax()).eval().requires_grad_(False)
    tokens, text = torch.randn(2, 15, 24), None if context_dim is None else torch.randn(2, 7, context_dim)
    expected = attention(tokens, text).transpose(1, 2).reshape(2, 24, 3, 5)
    wrapper = SpatialAttention(24, 4, 1e-6)  # a root, below which everything is rewritten
    wrapper.inner = attention
    assert rewrite(wrapper, step) > 0
    maps = None if text is None else text[:, None].permute(0, 3, 1, 2)
    found = attention(tokens.transpose(1, 2).reshape(2, 24, 3, 5), maps)
    assert compare(found.numpy(), expected.numpy()).snr_db >= EXACT_DB


def check_vae_attention(rewrite: Apply, step: OneStep) -> None:
    """The VAE's attention over pixels, rewritten, is the same, and its weights are in use."""
    torch.manual_seed(0)
    attention = SpatialAttention(24, 4, 1e-6).eval().requires_grad_(False)
    x = torch.randn(1, 24, 6, 10)
    expected = attention(x).numpy()
    assert rewrite(attention, step) == 4
    assert compare(attention(x).numpy(), expected).snr_db >= EXACT_DB
    attention.to_k.weight.mul_(1.01)
    assert compare(attention(x).numpy(), expected).snr_db < EXACT_DB - 20


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
    from md_export import mil
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
