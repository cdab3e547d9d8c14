"""Write a .tflite artifact."""

from __future__ import annotations

import shutil
from pathlib import Path

from md_export.targets.tflite.target import TfliteModel


def save(model: TfliteModel, path: Path) -> None:
    """Copy the file as it is to ``path``, which must not exist.

    Raises:
        OSError: the disk is full, the folder is missing, or ``path`` exists.
    """
    with model.path.open("rb") as content, path.open("xb") as target:
        shutil.copyfileobj(content, target, length=16 * 1024 * 1024)
