"""Read checkpoint folders: checked configs, strict keys, memory-mapped weights; no code in them is executed."""

from __future__ import annotations

from pathlib import Path

from md_export.checkpoint.configs import read_model_config
from md_export.checkpoint.derived import open_layout
from md_export.checkpoint.folder import Checkpoint, open_checkpoint
from md_export.checkpoint.modules import build_on_meta
from md_export.models.config import ModelConfig

__all__ = ["Checkpoint", "build_on_meta", "open_checkpoint", "read_config"]


def read_config(path: Path) -> ModelConfig:
    """Return the configs of a checkpoint folder; weights and tokenizer may be missing."""
    return read_model_config(open_layout(path))
