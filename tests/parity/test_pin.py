"""Pins: an export that was made to agree with itself, and is not what was pinned, is rejected by name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from md_export.cli import cli
from md_export.errors import ArtifactError, MachineError, PinError, UsageError
from md_export.parity.judge import verify
from md_export.parity.metrics import Check
from md_export.parity.pin import pin_bytes, pin_findings, read_pin, seal
from md_export.spec.artifact import Measured
from md_export.spec.manifest import read_manifest, write_manifest
from md_export.system.signature import sign, signer_of
from mutations import edit_json, rehash
from support import Exported

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def out(copy_of: Exported) -> Path:
    return copy_of("onnx", "int8")


def lines(out: Path, pinned: Path, promise: bool) -> list[str]:
    """What an edited copy has otherwise than the export that was pinned."""
    found = pin_findings(out, seal(pinned, promise))
    assert {one.check for one in found} <= {Check.PIN}
    return [f"{one.component}: {one.text}" for one in found]


def test_a_pin_reads_back_and_an_untouched_export_has_nothing_else(out: Path, tmp_path: Path) -> None:
    for promise in (True, False):
        pin = seal(out, promise)
        (tmp_path / "pin.json").write_bytes(pin_bytes(pin))
        assert read_pin(tmp_path / "pin.json") == (pin, None)
        assert pin_findings(out, pin) == []
    assert "recipe" not in json.loads(pin_bytes(seal(out)))
    assert len(pin_bytes(seal(out, promise=True))) < 8000


def test_neither_clock_nor_folder_is_in_a_pin(out: Path, tmp_path: Path) -> None:
    before = [pin_bytes(seal(out, promise)) for promise in (True, False)]
    manifest = read_manifest(out)
    entries = tuple(replace(entry, measured=Measured(99.0, 1 << 33)) for entry in manifest.artifacts)
    write_manifest(replace(manifest, artifacts=entries), out)
    moved = out.rename(tmp_path / "elsewhere")
    assert [pin_bytes(seal(moved, promise)) for promise in (True, False)] == before


EDITS: dict[str, tuple[Edit, str]] = {
    "threshold": (
        lambda manifest: manifest["recipe"]["tolerances"]["unet"].update(snr_db=1.0),
        "unet: threshold snr_db is 1.0, the pin says 20",
    ),
    "threshold more": (
        lambda manifest: manifest["recipe"]["tolerances"]["unet"].update(cosine=0.5),
        "unet: threshold cosine is 0.5, the pin has none",
    ),
    "picture": (
        lambda manifest: manifest["recipe"].update(picture_psnr_db=1.0),
        ": threshold picture_psnr_db is 1.0, the pin says ",
    ),
    "scheme": (
        lambda manifest: manifest["recipe"]["schemes"]["unet"].update(keep_float=["*"]),
        "unet: scheme keep_float lost conv_out, gained *",
    ),
    "prompt": (
        lambda manifest: manifest["recipe"]["golden"]["prompts"].pop(0),
        ": recipe golden.prompts lost ",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("promise", [True, False])
def test_an_edited_recipe_is_named(out: Path, exported: Exported, edit: str, promise: bool) -> None:
    change, said = EDITS[edit]
    edit_json(out / "manifest.json", change)
    (line,) = lines(out, exported("onnx", "int8"), promise)
    assert line.startswith(said)
    # A pin that is made again agrees with whatever there is: only the one that was kept does not.
    assert pin_findings(out, seal(out, promise)) == []


def test_a_lowered_threshold_passes_verify_and_not_the_pin(out: Path, exported: Exported) -> None:
    edit_json(out / "manifest.json", EDITS["threshold"][0])
    assert verify(out).failures == ()
    verdict = verify(out).with_findings(pin_findings(out, seal(exported("onnx", "int8"), promise=True)))
    assert verdict.failures == ("unet: threshold snr_db is 1.0, the pin says 20.0",)


def strike_decoder(out: Path) -> None:
    """Recipe, manifest and files without the decoder, as an export of the other components has them."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["recipe"]["components"].remove("vae_decoder")
        manifest["artifacts"] = [one for one in manifest["artifacts"] if one["component"] != "vae_decoder"]
        manifest["picture_psnr_db"] = None

    edit_json(out / "manifest.json", change)
    (out / "vae_decoder.onnx").unlink()


def test_a_component_struck_everywhere_passes_verify_and_not_the_pin(out: Path, exported: Exported) -> None:
    strike_decoder(out)
    assert verify(out).failures == ()
    pinned = exported("onnx", "int8")
    assert lines(out, pinned, promise=True) == [": recipe components lost vae_decoder"]
    assert ": artifact vae_decoder is missing" in lines(out, pinned, promise=False)


def test_golden_cases_struck_everywhere_are_named(out: Path, exported: Exported) -> None:
    def change(index: dict[str, Any]) -> None:
        (out / "golden" / index["cases"].pop()["file"]).unlink()

    edit_json(out / "golden" / "index.json", change)
    rehash(out)
    (line,) = lines(out, exported("onnx", "int8"), promise=True)
    assert line.startswith(": golden cases lost [")


def test_a_seal_names_figures_and_files_and_a_promise_does_not(out: Path, exported: Exported) -> None:
    (out / "tokenizer" / "merges.txt").write_text("")
    edit_json(out / "manifest.json", lambda manifest: manifest["artifacts"][1]["parity"].update(snr_db=99.0))
    rehash(out)
    (out / "note.txt").write_text("")
    found = lines(out, exported("onnx", "int8"), promise=False)
    starts = [
        "unet: artifact parity.snr_db is 99.0, the pin",
        ": file tokenizer/merges.txt is ",
        ": file note.txt is not in",
    ]
    assert [line.startswith(start) for line, start in zip(found, starts, strict=True)] == [True] * 3
    assert lines(out, exported("onnx", "int8"), promise=True) == []


@pytest.mark.parametrize("promise", [True, False])
def test_what_is_altered_is_not_sealed(out: Path, promise: bool) -> None:
    (out / "note.txt").write_text("")
    if promise:
        assert seal(out, promise)
        (out / "tokenizer" / "merges.txt").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot be sealed: .*(note|merges)\.txt"):
        seal(out, promise)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda pin: pin["recipe"]["tolerances"]["unet"].update(snr_db=1.0), "was edited"),
        (lambda pin: pin.update(schema=2), "schema 2"),
        (lambda pin: pin.pop("recipe"), "schema 1"),
        (lambda pin: pin.update(more=1), "not a pin: more"),
        (lambda pin: pin["recipe"].update(name="../x"), "not a pin: name"),
        (lambda pin: pin["recipe"]["tolerances"]["unet"].update(snr_db="NaN"), "not a pin: recipe.tolerances"),
    ],
)
def test_an_edited_pin_is_refused_in_one_line(out: Path, tmp_path: Path, change: Edit, said: str) -> None:
    path = tmp_path / "pin.json"
    path.write_bytes(pin_bytes(seal(out, promise=True)))
    edit_json(path, change)
    with pytest.raises(ArtifactError, match=said):
        read_pin(path)


def called(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(item) for item in arguments])


def ssh_keygen(*arguments: object) -> None:
    program = shutil.which("ssh-keygen")
    if program is None:
        pytest.skip("needs ssh-keygen")
    subprocess.run([program, "-q", *map(str, arguments)], check=True)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """``a`` and ``b``, of whom only ``a`` stands in the list ``allowed``."""
    for name in ("a", "b"):
        ssh_keygen("-t", "ed25519", "-N", "", "-C", name, "-f", tmp_path / name)
    kind, public, _ = (tmp_path / "a.pub").read_text().split()
    (tmp_path / "allowed").write_text(f"a@example.org {kind} {public}\n")
    return tmp_path


def test_the_commands_pin_sign_and_check(out: Path, keys: Path) -> None:
    pin, allowed = keys / "pin.json", keys / "allowed"
    check = ("manifest", "check", out, "--pin", pin, "--allowed-signers", allowed)
    made = called("manifest", "seal", out, "-o", pin, "--sign", keys / "a")
    assert made.exit_code == 0, made.output
    assert (
        f"covers recipe, thresholds and 16 golden cases, figures and all files; signed with {keys / 'a'}" in made.output
    )
    assert called("manifest", "seal", out).output.encode() == pin.read_bytes()
    passed = called(*check)
    assert passed.exit_code == 0
    assert "signed by a@example.org" in passed.output
    edit_json(out / "manifest.json", EDITS["threshold"][0])
    failed = called(*check)
    assert isinstance(failed.exception, PinError)
    assert failed.exception.exit_code == 3
    assert str(failed.exception).endswith("pin.json says: unet: threshold snr_db is 1.0, the pin says 20.0")
    result = called("verify", out, "--pin", pin)
    assert "no signature required" in result.output
    assert "unet: threshold snr_db is 1.0, the pin says 20.0" in str(result.exception)


def test_signatures_of_others_and_of_other_content_are_refused(keys: Path) -> None:
    signature, allowed = keys / "pin.json.sig", keys / "allowed"
    signature.write_bytes(sign(b"pin", keys / "a"))
    assert signer_of(b"pin", signature, allowed) == "a@example.org"
    with pytest.raises(PinError, match=r"is not a@example\.org's signature of this pin"):
        signer_of(b"another", signature, allowed)
    signature.write_bytes(sign(b"pin", keys / "b"))
    with pytest.raises(PinError, match="by no signer in"):
        signer_of(b"pin", signature, allowed)
    ssh_keygen("-Y", "sign", "-n", "git", "-f", keys / "a", allowed)
    with pytest.raises(PinError, match="signature of this pin"):
        signer_of(allowed.read_bytes(), keys / "allowed.sig", allowed)


def test_what_lacks_for_a_signature_is_said(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be read.*--sign KEY"):
        signer_of(b"pin", keys / "none.sig", keys / "allowed")
    with pytest.raises(MachineError, match=r"cannot sign with .*none"):
        sign(b"pin", keys / "none")
    monkeypatch.setenv("PATH", str(keys))
    with pytest.raises(MachineError, match="need ssh-keygen"):
        sign(b"pin", keys / "a")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("manifest", "seal", "OUT", "--sign", "key"), "with -o"),
        (("manifest", "check", ".", "--pin", "pin.json"), "needs one export"),
        (("verify", "OUT", "--allowed-signers", __file__), "goes with --pin"),
        (("verify", "OUT", "--pin", "pin.json", "--self-test"), "leave out --pin"),
    ],
)
def test_flags_that_contradict_each_other(
    exported: Exported, arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(exported("onnx", "int8"))
    monkeypatch.chdir(tmp_path)
    for name in ("key", "pin.json"):
        Path(name).touch()
    result = called(*(out if item == "OUT" else item for item in arguments))
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
