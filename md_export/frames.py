"""What a picture that is given to a model must be like, asked before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.errors import UsageError
from md_export.running import Export, open_to_run


@dataclass(frozen=True)
class Frame:
    """Of the pictures of a model, ``where``: their ``side`` in pixels, and ``[1, C, H, W]`` of a condition, if any."""

    where: Path
    side: int
    condition: tuple[int, ...] | None

    def require_condition(self) -> tuple[int, ...]:
        """``[1, C, H, W]`` of the condition picture; UsageError where the model takes none."""
        if self.condition is None:
            raise UsageError(
                f"{self.where}: this model takes no condition picture; give its checkpoint an adapter with md-export "
                "adapt CHECKPOINT --adapter FOLDER, or --controlnet FOLDER, and use or export that"
            )
        return self.condition


def frame_of(export: Export) -> Frame:
    """Of the pictures that an opened export makes."""
    return Frame(export.out, export.image_side, export.condition_shape)


def frame_of_artifacts(out: Path) -> Frame:
    """Of the pictures that an export makes; raises as :func:`md_export.running.open_to_run`."""
    return frame_of(open_to_run(out))


def frame_of_checkpoint(checkpoint_dir: Path, size: int | None = None) -> Frame:
    """Of the pictures that a checkpoint makes; UsageError where it makes none of that ``size``."""
    config = open_checkpoint(checkpoint_dir).at(size).config
    return Frame(checkpoint_dir, config.image_size, config.condition_shape)
