"""Change what an artifact stores, with a manifest that agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Manifest, read_manifest
from md_export.targets import TARGETS
from mutations import rehash

# Every constant of an artifact, open for change; what is written into one is saved.
Change = Callable[[list[Any]], None]


def entry_of(out: Path, component: str) -> tuple[Manifest, ArtifactEntry]:
    manifest = read_manifest(out)
    return manifest, manifest.entry_for(component)


def change(out: Path, component: str, how: Change) -> None:
    """Open the artifact for change, and make the manifest agree with it again."""
    manifest, entry = entry_of(out, component)
    with TARGETS[manifest.target].edit(out / entry.file) as constants:
        how(constants)
    rehash(out)


def largest(constants: Sequence[Any], role: str = "weight") -> Any:
    return max((item for item in constants if item.role == role), key=lambda item: item.values.nbytes)


def one_value(constants: list[Any]) -> None:
    """A tenth of the largest magnitude more or less, in one value of the largest weight."""
    values = largest(constants).values.reshape(-1)
    peak = np.abs(values.astype(np.float64)).max()
    step = peak / 10 if values[0] < 0 else -peak / 10
    values[0] = np.asarray(values[0] + step).astype(values.dtype)
