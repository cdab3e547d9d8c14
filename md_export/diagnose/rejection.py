"""Advice after an export was rejected: the changes that the attribution of its errors suggests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from md_export.checkpoint.derived import adapted
from md_export.diagnose.attribution.attribute import attribute
from md_export.errors import MdExportError
from md_export.parity.metrics import Check
from md_export.parity.subject import shortfalls
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.shipped_files import builtin_recipes

_MOST_LINES: Final = 3
_PICTURE: Final = "picture_psnr_db"


def next_steps(rejected: Path, checkpoint: Path, loras: tuple[str, ...], tell: Callable[[str], None]) -> list[str]:
    """Return changes to the recipe, one line each; ``rejected``: folder of the rejected export.

    The first component that misses a threshold is compared with torch module by module. No errors are raised;
    advice that cannot be computed is left out.
    """
    try:
        return list(_lines(rejected, checkpoint, loras, tell))
    except (MdExportError, OSError):
        return []


def _lines(rejected: Path, checkpoint: Path, loras: tuple[str, ...], tell: Callable[[str], None]) -> Iterator[str]:
    manifest = read_manifest(rejected)
    short = [entry for entry in manifest.artifacts if _falls_short(manifest, entry)]
    for entry in short[:1]:
        with adapted(checkpoint, loras) as folder:
            found = attribute(rejected / entry.file, folder, tell)
        yield from (f"{entry.component}: {line}" for line in found.advice[:_MOST_LINES])
    based_on = [name for name in builtin_recipes() if manifest.recipe.name.startswith(name)]
    copy = f"md-export recipe new {max(based_on, key=len)} -o mine.toml, " if based_on else ""
    least = "guidance_snr_db" if any(_loses_guidance(manifest, entry) for entry in manifest.artifacts) else _PICTURE
    what = "change it there" if short else f"if such a picture will do, lower {least} there"
    yield f"next: {copy}{what}, and export with --recipe mine.toml"


def _falls_short(manifest: Manifest, entry: ArtifactEntry) -> bool:
    least = manifest.recipe.tolerances[entry.component].snr_db
    return entry.parity is None or not entry.parity.snr_db >= least


def _loses_guidance(manifest: Manifest, entry: ArtifactEntry) -> bool:
    figures = () if entry.parity is None else shortfalls(entry.parity, manifest.recipe.tolerances[entry.component])
    return any(fault.check is Check.GUIDANCE for fault in figures)
