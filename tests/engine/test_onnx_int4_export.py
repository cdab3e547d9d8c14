"""The trained checkpoint with weights of 4 and 8 bits in one ONNX file: audit, attribution and self-test read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from md_export.checkpoint import open_checkpoint
from md_export.diagnose.attribution.attribute import blame
from md_export.engine.hops import Part, opened
from md_export.parity.metrics import Check
from md_export.parity.selftest.run import auditor, try_all
from md_export.parity.selftest.table import MUTATIONS, Hashes
from md_export.parity.weights.audit import ComponentAudit, audit_component
from md_export.parity.weights.reference import prepare_reference
from md_export.spec.manifest import read_manifest
from md_export.spec.shipped_files import nano_checkpoint
from md_export.targets import TARGETS
from support import Exported

pytestmark = pytest.mark.slow

TARGET = TARGETS["onnx"].open()
TRIED = {
    "64 bytes of a weight flipped": Check.AUDIT,
    "one quantization scale doubled": Check.AUDIT,
    "quantized weights stored as float": Check.STORED,
    "other precision": Check.CLAIMS,
}


def invert_signs(path: Path, weight: str) -> None:
    """Of a weight of 4 bits: 1 becomes -7."""
    with TARGET.edit(path) as constants:
        (packed,) = [item for item in constants if item.name == weight]
        packed.values[:] ^= 0x88


def audited(out: Path, component: str) -> ComponentAudit:
    manifest = read_manifest(out)
    reference = prepare_reference(
        open_checkpoint(nano_checkpoint()), manifest.recipe, component, nano_checkpoint() / "golden"
    )
    return audit_component(out, manifest, manifest.entry_for(component), reference)


def test_every_weight_is_proven_and_a_wrong_one_named(copy_of: Exported) -> None:
    out = copy_of("onnx", "int4")
    text, decoder = (audited(out, name) for name in ("text_encoder", "vae_decoder"))
    for found in (text, decoder):
        assert found.faults == found.missing == ()
        assert found.as_requested == found.promised > 0.5 * found.total
        assert found.proven_share > 0.99
    assert text.requested == "int4 and int8"
    assert set(text.stored) - {"int64"} == {"int4", "int8", "float32"}
    weight = "decoder.mid_block.resnets.0.conv1.weight"
    invert_signs(out / "vae_decoder.onnx", f"{weight}_int4")
    (fault,) = audited(out, "vae_decoder").faults
    assert fault.startswith(f"{weight}, stored as int4: ")


def test_a_wrong_weight_is_blamed(copy_of: Exported) -> None:
    out, module = copy_of("onnx", "int4"), "down_blocks.1.resnets.0.conv1"
    manifest, part, cases = opened(Part(out, "unet", nano_checkpoint()))
    entry = manifest.entry_for("unet")
    untouched = blame(manifest, entry, out / entry.file, part, cases[:1])
    assert untouched.first is None
    assert untouched.matched == untouched.leaves
    invert_signs(out / entry.file, f"{module}.weight_int4")
    damaged = blame(manifest, entry, out / entry.file, part, cases[:1])
    assert damaged.first is not None
    assert damaged.first.path == module


def test_the_gate_notices(exported: Exported, nano: Path) -> None:
    chosen = [mutation for mutation in MUTATIONS if mutation.name in TRIED]
    first, *tried, last = try_all(exported("onnx", "int4"), auditor(nano), chosen)
    assert first.verdict == last.verdict == "accepted"
    assert {row.mutation for row in tried} == set(TRIED)
    assert {row.verdict for row in tried} == {"rejected"}
    assert all(TRIED[row.mutation] in row.caught_by for row in tried if row.hashes == str(Hashes.ALL))
