"""Write a .tflite artifact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import cast

from md_export.targets.tflite.lower import TfliteModel


def save(model: object, path: Path) -> None:
    """Copy the file as it is to ``path``, which must not exist.

    Raises:
        OSError: the disk is full, the folder is missing, or ``path`` exists.
    """
    source = cast(TfliteModel, model).path
    with source.open("rb") as content, path.open("xb") as target:
        shutil.copyfileobj(content, target, length=16 * 1024 * 1024)
