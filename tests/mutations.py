"""Ways to break an export on purpose; every gate must notice each of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from md_export.artifact import bytes_of_artifact, read_manifest, sha256_of_artifact, write_manifest


def weight_file(out: Path, component: str) -> Path:
    """The file that holds the component's weights."""
    entry = next(item for item in read_manifest(out).artifacts if item.component == component)
    path = out / entry.file
    return next(path.rglob("weight.bin")) if path.is_dir() else path


def flip_block(path: Path, size: int = 4096) -> None:
    """Invert ``size`` bytes in the middle of a weight file."""
    content = bytearray(path.read_bytes())
    start = len(content) // 2 // 64 * 64
    block = np.frombuffer(bytes(content[start : start + size]), np.uint8)
    content[start : start + size] = np.bitwise_not(block).tobytes()
    path.write_bytes(content)


def rehash(out: Path) -> None:
    """Make the manifest agree with the files, as an attacker or a careless script would."""
    manifest = read_manifest(out)
    entries = tuple(
        dataclasses.replace(
            entry, sha256=sha256_of_artifact(out / entry.file), bytes=bytes_of_artifact(out / entry.file)
        )
        for entry in manifest.artifacts
    )
    write_manifest(dataclasses.replace(manifest, artifacts=entries), out)


def put_nan(path: Path, original: np.ndarray) -> None:
    """Replace the first value of a stored float weight, found by its bytes, with NaN."""
    content = path.read_bytes()
    needle = original.tobytes()
    assert content.count(needle[:64]) == 1, "the weight is not stored as it is in this file"
    broken = original.copy().ravel()
    broken[0] = np.nan
    path.write_bytes(content.replace(needle[:64], broken.tobytes()[:64]))
