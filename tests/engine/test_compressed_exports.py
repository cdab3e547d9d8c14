"""The trained checkpoint, compressed: what the recipes promise, and that the gate looks inside."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from md_export.parity.judge import verify
from md_export.parity.metrics import Check
from md_export.parity.selftest.run import auditor, try_all
from md_export.parity.selftest.table import MUTATIONS
from md_export.spec.manifest import read_manifest
from mutations import flip_block, rehash, weight_file
from support import Exported

pytestmark = pytest.mark.slow


def test_palettes_hold_what_was_asked_for_and_nothing_else_passes(exported: Exported, copy_of: Exported) -> None:
    entries = read_manifest(exported("coreml", "palette6")).artifacts
    assert all(entry.stored["uint6"] > 4 * entry.stored["float16"] for entry in entries)
    out = copy_of("coreml", "palette6")
    shutil.rmtree(out / "unet.mlpackage")
    shutil.copytree(exported("coreml", "fp16") / "unet.mlpackage", out / "unet.mlpackage")
    rehash(out)
    failures = verify(out).failures
    assert "unet: palette6 was requested, but only 0% of its weights are stored so" in failures
    assert all(line.startswith("unet: ") for line in failures)


def test_a_moved_palette_entry_is_noticed(exported: Exported, nano: Path) -> None:
    moved = [mutation for mutation in MUTATIONS if mutation.name == "a palette entry moved"]
    _, as_it_is, agreed, _ = try_all(exported("coreml", "palette6"), auditor(nano), moved)
    assert (as_it_is.verdict, agreed.verdict) == ("rejected", "rejected")
    assert agreed.caught_by == (Check.AUDIT,)


def test_w8a8_computes_in_int8_and_a_damaged_weight_is_noticed(copy_of: Exported) -> None:
    out = copy_of("coreml", "w8a8")
    unet = read_manifest(out).entry_for("unet")
    assert unet.ops["quantize"] > 0.5 * unet.ops["conv"]
    path = weight_file(out, "unet")
    flip_block(path, size=path.stat().st_size // 3)
    rehash(out)
    assert any(line.startswith("unet: ") for line in verify(out).failures)
