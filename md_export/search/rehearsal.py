"""A choice as a whole, in torch: how far the sums that it was chosen by can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from md_export.parity.adjusted import adjust, storages
from md_export.parity.golden import read_golden
from md_export.parity.golden_case import GoldenCase
from md_export.parity.metrics import compare
from md_export.quantization.rounding import rounded
from md_export.recipe import Recipe
from md_export.recipe_file import recipe_from_dict
from md_export.rewrites.upsample_to_four_convs import FourConv2d
from md_export.search.probe import Probe
from md_export.search.quality import Quality
from md_export.storage import WeightStorage
from md_export.tensors import Arrays


def rehearse_request(request: dict[str, Any]) -> dict[str, Any]:
    """:func:`rehearse` with plain data in and out, so that it runs in any process.

    Args:
        request: ``checkpoint``, ``golden``, ``cases``: folders, the last for rounding; ``step``: 2 for every other of
            those; ``recipe``: as recipe_to_dict writes it.
    """
    recipe, golden = recipe_from_dict(request["recipe"], "recipe"), read_golden(Path(request["golden"])).cases
    calibration = read_golden(Path(request["cases"])).cases[:: request["step"]]
    return dataclasses.asdict(rehearse(Path(request["checkpoint"]), recipe, golden, calibration))


def rehearse(
    checkpoint: Path, recipe: Recipe, cases: Sequence[GoldenCase], calibration: Sequence[GoldenCase]
) -> Quality:
    """What the recipe's artifacts would make of golden cases if their runtimes computed in float32.

    Args:
        cases: that judge; the worst of each figure counts.
        calibration: for rounding.
    """
    probe = Probe(checkpoint, recipe, cases)
    for name in recipe.components:
        part = probe.parts[name]
        inputs: list[Arrays] = [part.inputs_of(case) for case in calibration]
        adjust(part, probe.target, inputs)
        for path, storage in storages(part, probe.target).items():
            _store(part.module.get_submodule(path), storage)
    return Quality(
        picture_db=min(compare(made, wanted).psnr_db for made, wanted in probe.pictures()),
        snr_db={name: min(probe.parts[name].snr_db(case) for case in cases) for name in recipe.components},
    )


@torch.no_grad()
def _store(layer: nn.Module, storage: WeightStorage) -> None:
    """Round to nearest, as a target does; what was rounded already stays as it is."""
    if isinstance(layer, FourConv2d):
        layer.phases = torch.stack([rounded(layer, part, storage, "nearest", None) for part in layer.phases])
        return
    weight = layer.get_parameter("weight")
    layer.register_parameter(
        "weight", nn.Parameter(rounded(layer, weight, storage, "nearest", None), requires_grad=False)
    )
