"""Types of the paths on the command line: a wrong path is an error before anything that takes long is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from md_export.spec.given import (
    JOIN,
    require_artifact,
    require_checkpoint,
    require_export,
    require_folder_of,
    require_golden,
    require_joined,
)


class _Checked(click.Path):
    """A path that ``check`` accepts; it raises an MdExportError for others."""

    def __init__(self, check: Callable[[Path], None]) -> None:
        super().__init__(path_type=Path)
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, checked."""
        path: Any = super().convert(value, param, ctx)
        self._check(path)
        return path


def _require_export_or_joined(folder: Path) -> None:
    if not (folder / JOIN).is_file():
        require_export(folder)


def _require_artifact_or_checkpoint(path: Path) -> None:
    (require_artifact if path.suffix else require_checkpoint)(path)


def _require_new(path: Path) -> None:
    from md_export.system.files import refuse_existing

    refuse_existing(path)


PATH: Final = click.Path(path_type=Path)
EXISTING: Final = click.Path(path_type=Path, exists=True)
CHECKPOINT: Final = _Checked(require_checkpoint)
ARTIFACT: Final = _Checked(require_artifact)
ARTIFACT_OR_CHECKPOINT: Final = _Checked(_require_artifact_or_checkpoint)
EXPORT: Final = _Checked(require_export)
JOINED: Final = _Checked(require_joined)
EXPORT_OR_JOINED: Final = _Checked(_require_export_or_joined)
GOLDEN: Final = _Checked(require_golden)
NEW: Final = _Checked(_require_new)
# A file to write, or to overwrite.
FILE: Final = _Checked(require_folder_of)
