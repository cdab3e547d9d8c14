"""Exports in their folders: left alone where they are right, replaced where not, and foreign folders never touched."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.toy import Quiet, toy_build, toy_plan
from md_export.errors import OutputError
from md_export.system.files import sha256_of


@pytest.fixture
def built(tmp_path: Path) -> Path:
    outcome = toy_build(tmp_path, Quiet())
    assert [one.status for one in outcome.exports] == ["built", "built", "built"]
    return tmp_path


def test_again_nothing_is_done_and_nothing_is_written(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (built / "out").rglob("*")}
    listener = Quiet()
    outcome = toy_build(built, listener)
    assert [one.status for one in outcome.exports] == ["up to date"] * 3
    assert (listener.ran, listener.lines) == ([], [])
    assert {path: path.stat().st_mtime_ns for path in (built / "out").rglob("*")} == before


@pytest.mark.parametrize("damage", ["altered", "missing", "extra", "gone"])
def test_a_damaged_export_is_written_again_from_the_cache(built: Path, damage: str) -> None:
    export, whole = built / "out" / "export-1", sha256_of(built / "out" / "export-1")
    time.sleep(0.15)
    toy_build(built, Quiet())
    if damage == "altered":
        (export / "part-1" / "b").write_bytes((export / "part-1" / "b").read_bytes()[:-1] + b"x")
    elif damage == "missing":
        (export / "part-1" / "b").unlink()
    elif damage == "extra":
        (export / "part-1" / "c").write_text("")
    else:
        export.rename(built / "away")
    listener = Quiet()
    outcome = toy_build(built, listener)
    assert [one.status for one in outcome.exports] == ["up to date", "from the cache", "up to date"]
    assert listener.ran == []
    assert sha256_of(export) == whole


def test_a_file_that_somebody_put_beside_them_stays(built: Path) -> None:
    note = built / "out" / "export-0" / "report.html"
    note.write_text("mine")
    assert {one.status for one in toy_build(built, Quiet()).exports} == {"up to date"}
    assert note.read_text() == "mine"


def test_a_damaged_entry_is_made_again_and_what_holds_it_proved_again(built: Path) -> None:
    whole = sha256_of(built / "out" / "export-1")
    (part,) = (built / "cache" / "entries").glob("*/files/part-1/a")
    part.chmod(0o644)
    part.write_bytes(b"short")
    (built / "out" / "export-1").rename(built / "away")
    listener = Quiet()
    outcome = toy_build(built, listener)
    assert listener.lines[0] == "cache: part-1 is damaged (part-1/a); it will be built again"
    assert listener.ran == ["part-1", "export-1"]
    assert [one.status for one in outcome.exports] == ["up to date", "built", "up to date"]
    assert sha256_of(built / "out" / "export-1") == whole


def test_without_the_cache_everything_is_built_again(built: Path) -> None:
    (built / "cache").rename(built / "away")
    listener = Quiet()
    assert {one.status for one in toy_build(built, listener).exports} == {"built"}
    assert len(listener.ran) == len(toy_plan().steps)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_export_is_not_touched(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "out" / "export-2"
    place.parent.mkdir()
    if kind == "folder":
        place.mkdir()
        (place / "thesis.txt").write_text("work of years")
    elif kind == "file":
        place.write_text("work of years")
    else:
        place.symlink_to(tmp_path)
    listener = Quiet()
    with pytest.raises(OutputError, match="export-2 exists and is not an md-export export"):
        toy_build(tmp_path, listener)
    assert listener.ran == []
    assert place.exists()
