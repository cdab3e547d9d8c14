"""The rewritten module with the weights that rounding with calibration chooses: what an artifact really stores."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from md_export.checkpoint import Checkpoint
from md_export.parity.calibration import calibration_cases, calibration_inputs
from md_export.parity.rewritten import Rewritten, rewritten
from md_export.quantization.adjust import adjust_weights
from md_export.recipe import Recipe
from md_export.storage import WeightStorage
from md_export.targets import TARGETS
from md_export.targets.contract import TargetModule
from md_export.tensors import Arrays


def lowered_part(checkpoint: Checkpoint, component: str, recipe: Recipe, golden: Path) -> Rewritten:
    """The torch module whose weights an artifact of the recipe stores; ``golden``: the export's golden cases.

    Raises:
        RewriteError: a rewrite is refused, or fires nowhere.
        GoldenError: calibration needs the cases, and they cannot be read.
    """
    part = rewritten(checkpoint, component, recipe)
    if recipe.schemes[component].is_adjusted:
        with (
            tempfile.TemporaryDirectory(prefix="md-export-") as scratch,
            calibration_cases(recipe, checkpoint, golden, Path(scratch), lambda _: None) as made,
        ):
            adjust(part, TARGETS[recipe.target].open(), calibration_inputs(recipe, part, golden, made))
    return part


def adjust(part: Rewritten, target: TargetModule, calibration: Sequence[Arrays]) -> tuple[str, ...]:
    """Change the part's module in place as its scheme's rounding asks; nothing where it asks for none.

    The same module, calibration inputs and versions give the same weights: an audit makes them again.

    Returns:
        Paths of the modules that changed.
    """
    scheme = part.recipe.schemes[part.component]
    if not scheme.is_adjusted:
        return ()
    inputs = [tuple(torch.from_numpy(case[spec.name]) for spec in part.inputs) for case in calibration]
    return adjust_weights(part.module, scheme, storages(part, target), inputs)


def storages(part: Rewritten, target: TargetModule) -> dict[str, WeightStorage]:
    """How the target stores the weight of each module of the part that does not stay float, by module path."""
    scheme = part.recipe.schemes[part.component]
    found = {
        path: target.weight_storage(path, layer, scheme.for_module(path))
        for path, layer in part.module.named_modules()
        if not scheme.keeps_float(path)
    }
    return {path: storage for path, storage in found.items() if storage is not None}
