"""What a recipe will take on a checkpoint: memory as builds predict it, and room on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import build_on_meta, open_checkpoint
from md_export.components import ALL_COMPONENTS
from md_export.matrix.costs import artifact_cost, export_cost
from md_export.recipe import Recipe

_FLOAT32 = 4


@dataclass(frozen=True)
class Need:
    """Of one export.

    Attributes:
        memory: most bytes resident at once.
        step: what takes them.
        out, temp, cache: bytes on the disks of OUT, of temporary files, and of the cache that builds use.
    """

    memory: int
    step: str
    out: int
    temp: int
    cache: int


def need_of(recipe: Recipe, checkpoint_dir: Path) -> Need:
    """Predict; nothing is converted.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be opened.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    recipe = recipe.completed(checkpoint.components)
    weights = {
        name: _FLOAT32 * sum(p.numel() for p in build_on_meta(ALL_COMPONENTS[name], checkpoint.config).parameters())
        for name in recipe.components
    }
    area = (checkpoint.at(recipe.size).config.image_size / checkpoint.config.image_size) ** 2
    peaks = {
        f"{recipe.target} {name}": artifact_cost(recipe.target, name, recipe.schemes[name], size, area).peak_bytes
        for name, size in weights.items()
    }
    cases = len(recipe.golden.prompts) * len(recipe.golden.seeds)
    peaks["verifying"] = export_cost(recipe.target, sum(weights.values()), cases, area).peak_bytes
    step = max(peaks, key=lambda name: peaks[name])
    stored = sum(checkpoint.component_bytes(name) for name in recipe.components)
    # OUT: what an export asks for before it starts. Temporary: a converter's float file and its quantized successor.
    return Need(peaks[step], step, 3 * stored, 2 * max(weights.values()), stored)
