"""An export beside its checkpoint: what was made to agree with itself must still not pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

from md_export.checkpoint import open_checkpoint
from md_export.cli import cli
from md_export.engine.against_checkpoint import Comparison, audit, compare, derived_findings, verify
from md_export.engine.selftest import comparer
from md_export.parity.golden.recomputed import reference_findings
from md_export.parity.judge import verify as judge
from md_export.parity.metrics import Check, Finding
from md_export.parity.opened_export import open_export
from md_export.parity.selftest.run import try_all
from md_export.parity.selftest.sandbox import copy_with_cases
from md_export.parity.selftest.table import MUTATIONS
from md_export.parity.subject import most_snr_db
from md_export.spec.manifest import read_manifest
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import save_tensors
from mutations import edit_json, edits, rehash
from support import Exported

# Mutations that only the checkpoint, or the promises of recipe and manifest, tell from an honest export.
DEEP = (Check.REFERENCE, Check.CHECKPOINT, Check.CASES, Check.APP_FILES, Check.EXACT, Check.GRAPH)


def test_an_honest_export_agrees_with_its_checkpoint(exported: Exported, nano: Path) -> None:
    out = exported("onnx", "int8")
    assert verify(out, nano).failures == ()


def test_fewer_cases_than_the_checkpoint_has_are_a_fault_of_the_audit(
    exported: Exported, nano: Path, tmp_path: Path
) -> None:
    """Recipe, index and manifest agree on two cases: only the checkpoint knows of sixteen."""
    copy_with_cases(exported("onnx", "int8"), tmp_path / "out", 2)
    assert judge(tmp_path / "out").failures == ()
    (line,) = audit(tmp_path / "out", nano).failures
    assert line.startswith("text_encoder: it has 2 golden cases; the recipe requires 16 in its order")


@pytest.mark.parametrize("target", ["onnx", "swift"])
def test_nothing_that_agrees_with_itself_alone_passes(exported: Exported, swift: Path, nano: Path, target: str) -> None:
    out = swift if target == "swift" else exported("onnx", "int8")
    chosen = [mutation for mutation in MUTATIONS if set(mutation.caught.values()) & set(DEEP)]
    again = {entry.component: out / entry.file for entry in read_manifest(out).artifacts}
    rows = list(try_all(out, comparer(nano, again), chosen))
    assert [row for row in rows if not row.passed] == []
    skipped = {row.mutation for row in rows if row.verdict == "not applicable"}
    lacks = "another constant in a layout's file" if target == "onnx" else "a weight moved into a Constant node"
    assert skipped == {lacks, *edits("a convolution dilated")}


def changed(out: Path, key: str, factor: float) -> Path:
    """One value of every case multiplied, and all hashes made to agree."""
    for path in sorted((out / "golden").glob("*.safetensors")):
        values = load_file(path)
        save_tensors({**values, key: (values[key] * np.float32(factor)).astype(np.float32)}, path)
    rehash(out)
    return out


@pytest.mark.parametrize(("factor", "found"), [(1.0, False), (1 + 1e-5, False), (1.0003, True), (1.01, True)])
def test_a_reference_off_by_more_than_rounding_is_named_with_case_and_tensor(
    copy_of: Exported, nano: Path, factor: float, found: bool
) -> None:
    """1.0003 is 70 dB, as float16 has: near enough after a chain, not on the inputs of one component."""
    out = changed(copy_of("onnx", "int8"), "vae_decoder.image", factor)
    export = open_export(out)
    lines = list(reference_findings(open_checkpoint(nano), export.manifest, export.golden, lambda _: None))
    assert [(one.component, one.check) for one in lines] == [("vae_decoder", Check.REFERENCE)] * found
    assert all(one.text.startswith("case-0") and "the golden vae_decoder.image is" in one.text for one in lines)


def test_a_golden_tensor_that_torch_does_not_give_at_all(copy_of: Exported, nano: Path) -> None:
    out = copy_of("onnx", "int8")
    edit_json(out / "golden" / "index.json", lambda index: index["cases"][0].update(prompt="a large red square"))
    rehash(out)
    found = compare(Comparison(out, nano))
    assert {"case-000: the golden given.input_ids is not what torch computes" in one.text for one in found} == {
        True,
        False,
    }


def test_an_artifact_that_does_not_run_is_a_fault_beside_the_others(copy_of: Exported, nano: Path) -> None:
    out = copy_of("onnx", "int8")
    (out / "unet.onnx").write_bytes(b"no graph")
    (out / "tokenizer" / "added_tokens.json").write_text("{}")
    export = open_export(out)
    found = {(one.component, one.check) for one in derived_findings(export, open_checkpoint(nano), ())}
    assert found == {("unet", Check.EXECUTION), ("", Check.CHECKPOINT)}


@pytest.mark.parametrize(
    ("scheme", "most"),
    [
        (QuantScheme("int8", "float32"), 108),
        (QuantScheme("palette4", "float16", "tensor"), 84),
        (QuantScheme("float16", "float16"), 126),
        (QuantScheme("float16", "float32"), np.inf),
    ],
)
def test_what_a_scheme_cannot_exceed(scheme: QuantScheme, most: float) -> None:
    assert most_snr_db(scheme) == pytest.approx(most, abs=0.5)


def test_the_command_says_whether_a_checkpoint_was_asked(
    exported: Exported, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(exported("onnx", "int8"))
    result = CliRunner().invoke(cli, ["verify", out])
    assert "not checked against a checkpoint (--checkpoint)" in result.output
    finding = Finding("unet", Check.REFERENCE, "case-000: the golden unet.out_sample is 9 dB from it")
    monkeypatch.setattr("md_export.engine.against_checkpoint._findings", lambda *_: (finding,))
    result = CliRunner().invoke(cli, ["verify", out, "--checkpoint", str(nano)])
    assert "derived again from" in result.output
    assert "unet: case-000: the golden unet.out_sample is 9 dB" in str(result.exception)
