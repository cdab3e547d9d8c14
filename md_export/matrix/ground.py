"""What all recipes of a plan share: the checkpoint, what its artifacts say of it, and who computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.build import build_on_meta, component_named
from md_export.matrix.keys import maker
from md_export.notes import notes_of
from md_export.recipe import Recipe
from md_export.versions import tools_of

_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True)
class Ground:
    """What all recipes share that have the same LoRAs.

    Attributes:
        common: of every key but an artifact's: the checkpoint, and who computes.
        notes: of the artifacts, by the size of the pictures and the component.
        given: folder of golden cases that the request names.
        weights: bytes of each component in float32, of those also that the checkpoint's pictures do without.
        loras: those of the checkpoint, as steps are told.
    """

    checkpoint: Checkpoint
    common: dict[str, Any]
    notes: dict[int | None, dict[str, dict[str, str]]]
    given: Path | None
    weights: dict[str, int]
    loras: list[list[str]]

    @property
    def all_weights(self) -> int:
        """Bytes of all components in float32."""
        return sum(self.weights[name] for name in self.checkpoint.components)

    def area(self, recipe: Recipe) -> float:
        """Of the recipe's pictures, relative to those that the checkpoint was trained for."""
        return float((self.checkpoint.at(recipe.size).config.image_size / self.checkpoint.config.image_size) ** 2)


def ground_of(
    checkpoint_dir: Path, golden: Path | None, sizes: set[int | None], loras: list[list[str]] | None = None
) -> Ground:
    """Open the checkpoint and check that it is whole, for pictures of some ``sizes``.

    Raises:
        MdExportError: it cannot be read, or cannot make such pictures.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    checkpoint.check()
    return Ground(
        checkpoint,
        {
            "checkpoint": checkpoint.sha256(),
            "trained": checkpoint.trained_substitutions,
            "maker": maker(),
            "tools": tools_of(also=checkpoint.config.libraries),
        },
        {size: notes_of(checkpoint.at(size)) for size in sizes},
        golden,
        {name: _weight_bytes(checkpoint, name) for name in (*checkpoint.components, "vae_encoder")},
        loras or [],
    )


def _weight_bytes(checkpoint: Checkpoint, name: str) -> int:
    module = build_on_meta(component_named(name), checkpoint.config)
    return _FLOAT32_BYTES * sum(int(tensor.numel()) for tensor in module.state_dict().values())
