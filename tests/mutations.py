"""Ways to break an export on purpose, for single tests; the self-test's table tries every known one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from md_export.parity.selftest import damage as stored
from md_export.parity.selftest.sandbox import agree as rehash
from md_export.parity.selftest.sandbox import edit_json as edit_json
from md_export.spec.manifest import read_manifest
from md_export.targets import TARGETS

__all__ = ["PROMPTS", "RARE", "STYLES", "deepen_mask", "edit_json", "edits", "flip_block", "rehash", "weight_file"]


# Mutations of the stored text embeddings.
PROMPTS = {
    "embeddings of two prompts exchanged",
    "a value of an embedding changed",
    "embeddings taken from the artifact",
    "a stored prompt struck",
    "a prompt stored that was not asked for",
    "a stored prompt struck everywhere",
}
STYLES = {"factors of two layers exchanged in a style", "a stale style"}
# Mutations of what most exports do not have.
RARE = {*PROMPTS, *STYLES}


def weight_file(out: Path, component: str) -> Path:
    """The file that holds the component's weights."""
    entry = next(item for item in read_manifest(out).artifacts if item.component == component)
    return stored.weight_file(out / entry.file)


def flip_block(path: Path, size: int = 4096) -> None:
    """Invert ``size`` bytes in the middle of a weight file."""
    content = bytearray(path.read_bytes())
    start = len(content) // 2 // 64 * 64
    block = np.frombuffer(bytes(content[start : start + size]), np.uint8)
    content[start : start + size] = np.bitwise_not(block).tobytes()
    path.write_bytes(content)


def deepen_mask(path: Path) -> None:
    """Set the causal mask of a package's float16 ``weight.bin`` to float16's end."""
    with TARGETS["coreml"].open().edit(path.parents[3]) as constants:
        stored.deepen_mask(constants)


def edits(*names: str) -> set[str]:
    """Mutations of the decoder's graph, with honest golden outputs and with those of the edited decoder."""
    return {full for name in names for full in (name, f"{name}, golden outputs taken from it")}
