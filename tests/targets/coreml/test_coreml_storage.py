"""What the target says beforehand of a weight's storage is what its package holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from md_export.spec.scheme import QuantScheme, WeightRule, WeightStorage
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.target import CoremlTarget
from md_export.targets.stored import StoredWeight

coreml = CoremlTarget()
WIDTH = 48
SCHEME = QuantScheme(
    "palette4",
    "float16",
    "group",
    group_size=16,
    rules=(
        WeightRule(("wide", "depthwise"), "int4", "block", block_size=32),
        WeightRule(("linear",), "int8"),
        WeightRule(("whole",), "int8", "tensor"),
        WeightRule(("tiny",), "palette8", "tensor"),
    ),
)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.odd = nn.Conv2d(WIDTH, 20, 1)
        self.whole = nn.Conv2d(20, 20, 3, padding=1)
        self.depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.wide = nn.Conv2d(20, WIDTH, 3, padding=1)
        self.tiny = nn.Conv2d(WIDTH, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x).reshape(1, WIDTH, 1, 1).expand(1, WIDTH, 4, 4)
        for layer in (self.odd, self.whole, self.depthwise, self.wide):
            x = nn.functional.silu(layer(x))
        out: torch.Tensor = x.mean(dim=(2, 3)) + self.tiny(x).mean()
        return out


def storage_in(weight: StoredWeight) -> tuple[str, tuple[int, ...] | None]:
    if weight.palette is not None:
        return weight.dtype, weight.palette.tables.shape[:-1]
    return weight.dtype, None if weight.grid is None else weight.grid.steps.shape


def said(storage: WeightStorage | None) -> tuple[str, tuple[int, ...] | None]:
    if storage is None:
        return "float16", None
    return f"{'uint' if storage.entries else 'int'}{storage.bits}", storage.groups


@pytest.mark.parametrize("group_size", [16, 8])
def test_groups_and_types_are_those_in_the_package(
    group_size: int, small_job: Callable[..., LoweringJob], tmp_path: Path
) -> None:
    scheme, module = replace(SCHEME, group_size=group_size), Layers().eval()
    job = replace(small_job(module, scheme, width=WIDTH), deployment_target="iOS18", workdir=tmp_path)
    path = tmp_path / "x.mlpackage"
    coreml.lower(job).quantize(job).save(path)
    found = {
        weight.uses[0].modules[0]: storage_in(weight)
        for weight in coreml.stored_weights(path, scheme)
        if weight.grid is not None or weight.palette is not None
    }
    wanted = {
        name: said(coreml.weight_storage(name, layer, scheme.for_module(name)))
        for name, layer in module.named_children()
    }
    assert found == {name: storage for name, storage in wanted.items() if storage[1] is not None}
    # 96 values with 256 entries: the table would be larger than they are.
    assert wanted["tiny"] == ("float16", None)
    assert wanted["odd"] == ("uint4", (2 if group_size == 16 else 4, 1, 1, 1))


def test_a_table_of_positions_is_no_weight() -> None:
    table = nn.Embedding(77, WIDTH)
    assert coreml.weight_storage("embeddings.position_embedding", table, SCHEME) is None
    assert coreml.weight_storage("embeddings.token_embedding", table, SCHEME) is not None
    assert coreml.weight_storage("norm", nn.LayerNorm(WIDTH), SCHEME) is None
