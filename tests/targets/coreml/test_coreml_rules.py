"""Weights of different types in one package, by module path, and values that a grid already holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme, WeightRule, palette_bits
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.target import CoremlTarget
from md_export.targets.stored import Float32, StoredWeight

coreml = CoremlTarget()

WIDTH = 64
RULES = (
    WeightRule(("eight",), "int8"),
    WeightRule(("block",), "int4", "block", block_size=16),
    WeightRule(("six",), "palette6", "tensor"),
    WeightRule(("whole",), "float16"),
    WeightRule(("*",), "palette4", "group", group_size=16),
)
TYPES = {"eight": "int8", "block": "int4", "six": "uint6", "whole": "float16", "other": "uint4"}


class Layers(nn.Module):
    """One linear after the other, by name."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in names:
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = nn.functional.silu(layer(x))
        return x


Job = Callable[..., LoweringJob]


def export(small_job: Job, module: nn.Module, scheme: QuantScheme, path: Path, system: str = "iOS18") -> Path:
    calibration = tuple({"x": np.full((1, WIDTH), value, np.float32)} for value in (-1, 1))
    work = path.with_suffix(".work")
    work.mkdir()
    job = replace(
        small_job(module, scheme, width=WIDTH), deployment_target=system, calibration=calibration, workdir=work
    )
    coreml.lower(job).quantize(job).save(path)
    return path


def weights(path: Path, scheme: QuantScheme) -> dict[str, StoredWeight]:
    """Module path → its stored weight."""
    matrices = [item for item in coreml.stored_weights(path, scheme) if item.values.ndim == 2]
    return {item.uses[0].modules[0]: item for item in matrices}


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme("palette4", "float16", "group", group_size=16, rules=RULES[:-1]),
        QuantScheme("float16", "float16", rules=RULES),
        QuantScheme("float16", "int8_static", rules=RULES),
        QuantScheme("int8", "float16", sparsity=0.5, rules=RULES),
    ],
)
def test_each_module_is_stored_as_its_rule_says(scheme: QuantScheme, small_job: Job, tmp_path: Path) -> None:
    path = export(small_job, Layers(*TYPES), scheme, tmp_path / "x.mlpackage")
    found = weights(path, scheme)
    assert {name: item.dtype for name, item in found.items()} == TYPES
    assert all(item.promised for item in found.values())
    assert {item.kept is None for item in found.values()} == {scheme.sparsity is None}
    float_weights = coreml.describe(path).float_weights
    assert len(float_weights) == (0 if scheme.sparsity else 1)
    # Float weights keep float activations; the others take int8.
    share = 4 / 5 if scheme.activations == "int8_static" else 0
    assert coreml.describe(path).int8_inputs == pytest.approx(share)


def test_float_islands_win_over_rules(small_job: Job, tmp_path: Path) -> None:
    scheme = QuantScheme("float32", "float32", keep_float=("int8",), rules=(WeightRule(("*",), "int8"),))
    found = weights(export(small_job, Layers("int8", "other"), scheme, tmp_path / "x.mlpackage"), scheme)
    assert {name: item.dtype for name, item in found.items()} == {"int8": "float32", "other": "int8"}


def test_a_rule_that_matches_nothing_is_refused(small_job: Job, tmp_path: Path) -> None:
    scheme = QuantScheme("int8", "float16", rules=(WeightRule(("other", "nothing.*"), "int4"),))
    with pytest.raises(ConversionError, match=r"part: rules glob 'nothing\.\*' matches no module; correct the recipe"):
        export(small_job, Layers("other"), scheme, tmp_path / "x.mlpackage")
    optional = replace(scheme, rules=tuple(replace(rule, optional=True) for rule in scheme.rules))
    found = weights(export(small_job, Layers("other"), optional, tmp_path / "y.mlpackage"), optional)
    assert {name: item.dtype for name, item in found.items()} == {"other": "int4"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (WeightRule(("other",), "int4"), "int4 needs iOS 18"),
        (WeightRule(("other",), "int8", "block", block_size=16), "a scale per block needs iOS 18"),
        (WeightRule(("other",), "palette4", "group", group_size=16), "a table per group needs iOS 18"),
    ],
)
def test_what_a_rule_needs_of_the_system_is_said(
    rule: WeightRule, message: str, small_job: Job, tmp_path: Path
) -> None:
    scheme = QuantScheme("int8", "float16", rules=(rule,))
    with pytest.raises(ConversionError, match=f"part: {message}; set deployment_target"):
        export(small_job, Layers("other"), scheme, tmp_path / "x.mlpackage", system="iOS17")


@pytest.mark.parametrize(
    ("weights_of_rule", "activations", "message"),
    [
        ("float32", "float16", "weights=float32, activations=float16"),
        ("float16", "float32", "weights=float16, activations=float32"),
        ("palette2", "int8_static", "weights=palette2, activations=int8_static"),
    ],
)
def test_a_rule_that_does_not_go_with_the_activations_is_refused(
    weights_of_rule: Any, activations: Any, message: str, small_job: Job, tmp_path: Path
) -> None:
    granularity: Any = "tensor" if weights_of_rule.startswith("palette") else "channel"
    scheme = QuantScheme("int8", activations, rules=(WeightRule(("other",), weights_of_rule, granularity),))
    with pytest.raises(ConversionError, match=f"part: Core ML has no scheme {message}"):
        export(small_job, Layers("other"), scheme, tmp_path / "x.mlpackage")


GRIDS = {
    "groups": WeightRule(("groups",), "palette4", "group", group_size=16),
    "table": WeightRule(("table",), "palette3", "tensor"),
    "blocks": WeightRule(("blocks",), "int4", "block", block_size=16),
    "channels": WeightRule(("channels",), "int8"),
}


def on_grid(rule: WeightRule) -> Float32:
    """``[WIDTH, WIDTH]`` values that the rule's storage represents.

    Levels times scales whose products float16 holds, the largest level in each block; or values of tables in any
    places.
    """
    random = np.random.default_rng(1)
    entries = 2 ** (palette_bits(rule.weights) or 0)
    if entries > 1:
        groups = WIDTH // (rule.group_size or WIDTH)
        tables = random.normal(size=(groups, entries)).astype(np.float16).astype(np.float32)
        picks = random.integers(0, entries, (groups, WIDTH // groups * WIDTH))
        return np.take_along_axis(tables, picks, axis=1).reshape(WIDTH, WIDTH)
    most, block = (7, 16) if rule.weights == "int4" else (127, WIDTH)
    levels = random.integers(-most, most + 1, (WIDTH, WIDTH))
    levels[:, ::block] = most
    scales = random.integers(9, 16, (WIDTH, WIDTH // block)) * 2.0**-12
    return np.asarray(levels * scales.repeat(block, axis=1), np.float32)


def stored_of(wanted: dict[str, Float32], activations: Any, small_job: Job, path: Path) -> dict[str, Float32]:
    """What a package holds of a linear for each of :data:`GRIDS` with these weights."""
    module = Layers(*wanted)
    for name, values in wanted.items():
        module.get_submodule(name).weight = nn.Parameter(torch.from_numpy(values))
    scheme = QuantScheme("int8", activations, rules=tuple(GRIDS.values()))
    found = weights(export(small_job, module, scheme, path), scheme)
    return {name: found[name].values for name in wanted}


@pytest.mark.parametrize("activations", ["float16", "float32"])
def test_values_on_the_grid_are_stored_to_the_bit(activations: str, small_job: Job, tmp_path: Path) -> None:
    """What fits weights to a scheme before they are lowered must find them again."""
    wanted = {name: on_grid(rule) for name, rule in GRIDS.items()}
    found = stored_of(wanted, activations, small_job, tmp_path / "x.mlpackage")
    assert {name for name in GRIDS if np.array_equal(found[name], wanted[name])} == set(GRIDS)


def test_what_is_stored_is_stored_again_to_the_bit(small_job: Job, tmp_path: Path) -> None:
    """Values as they come: rounding what was rounded changes nothing, which the first time it did."""
    drawn = np.random.default_rng(2).normal(size=(len(GRIDS), WIDTH, WIDTH)).astype(np.float32)
    values = dict(zip(GRIDS, drawn, strict=True))
    once = stored_of(values, "float16", small_job, tmp_path / "x.mlpackage")
    assert not any(np.allclose(once[name], values[name], rtol=1e-3) for name in GRIDS)
    twice = stored_of(once, "float16", small_job, tmp_path / "y.mlpackage")
    assert {name for name in GRIDS if np.array_equal(twice[name], once[name])} == set(GRIDS)
