"""The gate tests itself on every target; and a gate that has lost one of its checks fails that test."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from md_export.cli import cli
from md_export.engine import selftest as command
from md_export.engine.selftest import self_test
from md_export.errors import ArtifactError, ParityError, UsageError
from md_export.parity.metrics import Check, Fault
from md_export.parity.selftest.run import Row, SelfTest, _verdict, auditor, try_all
from md_export.parity.selftest.table import MUTATIONS, Hashes
from md_export.spec.manifest import read_manifest
from md_export.system.files import sha256_of
from mutations import RARE, edits
from support import ONE_EACH, Exported

GUIDANCE = "the prompt's difference lost"
LAYOUT = "another constant in a layout's file"
PALETTE, OVERFLOW = "a palette entry moved", "float16 overflow behind a softmax"
RELABELLED, UNQUANTIZED = '"int8" that is float inside', "quantized weights stored as float"
SCALES = {"all quantization scales doubled", "one quantization scale doubled"}
INLINE = "a weight moved into a Constant node"
DILATED = edits("a convolution dilated")
# What the export of each target has nothing for.
NOT_APPLICABLE = {
    "coreml": {GUIDANCE, LAYOUT, PALETTE, UNQUANTIZED, *SCALES, INLINE, *DILATED, *RARE},
    "tflite": {
        *(GUIDANCE, LAYOUT, PALETTE, OVERFLOW, RELABELLED, INLINE, *RARE),
        *edits("a padding moved by one", "the epsilon of a norm"),
    },
    "onnx": {GUIDANCE, LAYOUT, PALETTE, OVERFLOW, RELABELLED, *DILATED, *RARE},
}


def finding(*lines: str) -> Callable[[Path, str], Sequence[Fault]]:
    """An audit that says this of everything."""
    return lambda *_: [Fault(Check.AUDIT, line) for line in lines]


def named(name: str) -> Any:
    return next(mutation for mutation in MUTATIONS if mutation.name == name)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), ONE_EACH)
def test_every_mutation_is_noticed_by_the_check_that_must(
    exported: Exported, nano: Path, target: str, precision: str
) -> None:
    out = exported(target, precision)
    before = sha256_of(out)
    result = self_test(out, nano)
    assert result.failures == ()
    assert len(result.rows) == 2 + sum(len(mutation.caught) for mutation in MUTATIONS)
    skipped = {row.mutation for row in result.rows if row.verdict == "not applicable"}
    assert skipped == NOT_APPLICABLE[target]
    assert all(row.expected in row.caught_by for row in result.rows if row.verdict == "rejected")
    assert sha256_of(out) == before


def test_every_check_is_what_some_mutation_needs() -> None:
    assert {check for mutation in MUTATIONS for check in mutation.caught.values()} == set(Check)


# A check, where it is called, what it says of everything once it is broken, and who gets past it then.
BROKEN: list[tuple[str, Any, str, Hashes, str]] = [
    ("subject.is_unchanged", True, "64 bytes of a weight flipped", Hashes.KEPT, "by accident"),
    ("subject.first_fault", None, "wrong dtype, float16", Hashes.KEPT, "NOT REJECTED"),
    ("subject.shortfalls", [], "zeros", Hashes.KEPT, "by accident"),
    ("judge.note_faults", [], "artifact of another checkpoint", Hashes.ALL, "NOT REJECTED"),
    ("judge.stored_faults", [], UNQUANTIZED, Hashes.ALL, "by accident"),
    ("judge.surface_faults", [], "wrong output dtype", Hashes.KEPT, "NOT REJECTED"),
    ("judge.claim_faults", [], "other stored bytes", Hashes.KEPT, "NOT REJECTED"),
]


@pytest.mark.parametrize(("check", "answer", "name", "hashes", "verdict"), BROKEN)
def test_without_one_check_the_self_test_fails_and_names_what_got_past(
    monkeypatch: pytest.MonkeyPatch,
    exported: Exported,
    nano: Path,
    check: str,
    answer: Any,
    name: str,
    hashes: Hashes,
    verdict: str,
) -> None:
    monkeypatch.setattr(f"md_export.parity.{check}", lambda *_: answer)
    audit = auditor(nano) if verdict == "by accident" else finding()
    rows = tuple(try_all(exported("onnx", "int8"), audit, [named(name)]))
    assert [(row.mutation, row.hashes, row.verdict) for row in rows if not row.passed] == [(name, hashes, verdict)]
    (failure,) = SelfTest("onnx", "onnx-int8", 1.0, rows).failures
    assert failure.startswith(f"{name} (")


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("64 bytes of a weight flipped", "NOT REJECTED"),
        ("golden outputs taken from a broken artifact", "by accident"),  # it is too exact for int8
    ],
)
def test_without_the_audit_a_small_fault_gets_past(exported: Exported, name: str, verdict: str) -> None:
    rows = list(try_all(exported("onnx", "int8"), finding(), [named(name)]))
    assert [(row.hashes, row.verdict) for row in rows if not row.passed] == [(Hashes.ALL, verdict)]


def test_an_export_that_the_gate_rejects_as_it_is_fails_the_control(exported: Exported) -> None:
    first, last = try_all(exported("onnx", "int8"), finding("x is off"), [])
    assert not first.passed
    assert first.caught_by == last.caught_by == (Check.AUDIT,)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([], "NOT REJECTED"),
        ([Check.FIGURES], "rejected"),
        ([Check.FIGURES, Check.PICTURE], "rejected"),
        ([Check.PICTURE], "by accident"),
        ([Check.EXECUTION, Check.FIGURES], "by accident"),
    ],
)
def test_a_crash_is_no_verdict(found: list[Check], verdict: str) -> None:
    assert _verdict(Check.FIGURES, [Fault(check, "x") for check in found]) == verdict


def row(**changes: Any) -> Row:
    passing = Row("zeros", "answer", str(Hashes.KEPT), "unet", "figures", "rejected", ("figures",), "snr 0 dB", True)
    return dataclasses.replace(passing, **changes)


def test_the_command_prints_the_table_and_exits_as_the_gate_did(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = exported("onnx", "int8")
    rows = [row(), row(mutation="negated", verdict="NOT REJECTED", caught_by=(), said="", passed=False)]
    monkeypatch.setattr(command, "isolated", lambda *_: lambda _: tuple(rows))
    result = CliRunner().invoke(cli, ["verify", str(out), "--self-test", "--json", str(tmp_path / "x.json")])
    assert isinstance(result.exception, ParityError)
    assert str(result.exception) == "negated (answer, hashes kept): figures should have noticed, nothing noticed"
    assert "NOT REJECTED: nothing noticed, figures was to" in " ".join(result.output.replace("│", " ").split())
    assert json.loads((tmp_path / "x.json").read_text())["rows"][0]["caught_by"] == ["figures"]
    rows.pop()
    result = CliRunner().invoke(cli, ["verify", str(out), "--self-test"])
    assert result.exit_code == 0
    assert "1 rejected, 0 not applicable" in result.output


def test_a_checkpoint_that_is_not_the_exports(exported: Exported, other_checkpoint: Path) -> None:
    out = exported("onnx", "int8")
    with pytest.raises(ArtifactError, match=f"{read_manifest(out).checkpoint_sha256[:12]}.*name the one that they"):
        self_test(out, other_checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora", "x"], "name it with --checkpoint"),
        (["--checkpoint", "x", "--npu"], "leave out --checkpoint"),
        (["--self-test", "--golden", "x"], "leave out --golden"),
        (["--self-test", "--gpu"], "leave out --gpu|runs TFLite files"),
    ],
)
def test_options_that_contradict_each_other(
    exported: Exported, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x", "unet").mkdir(parents=True)
    for name in ("index.json", "adapter_model.safetensors"):
        Path("x", name).touch()
    result = CliRunner().invoke(cli, ["verify", str(exported("onnx", "int8")), *options])
    assert isinstance(result.exception, UsageError)
    assert re.search(message, str(result.exception))
