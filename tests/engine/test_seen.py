"""Hashes are remembered, and never of a file that may have changed since."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from md_export.engine import keys as seen_module
from md_export.engine.keys import FileHashes, files_in
from md_export.system.files import sha256_of


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were read to be hashed."""
    names: list[str] = []

    def counting(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(seen_module, "sha256_of", counting)
    return names


def settled(path: Path, content: bytes = b"a") -> Path:
    """A file that is not young any more."""
    path.write_bytes(content)
    time.sleep(0.15)
    return path


def test_an_unchanged_file_is_read_once(tmp_path: Path, read: list[str]) -> None:
    path, seen = settled(tmp_path / "a"), FileHashes(tmp_path / "memory")
    first = seen.hashes(tmp_path, ["a", "missing"])
    assert first == {"a": sha256_of(path), "missing": None}
    assert FileHashes(tmp_path / "memory").hashes(tmp_path, ["a", "missing"]) == first
    assert read == ["a"]


def test_a_known_hash_is_found_by_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path, seen = settled(tmp_path / "sub" / "a"), FileHashes(tmp_path / "memory")
    assert seen.known(path) is None
    seen.hashes(tmp_path, ["sub/a"])
    assert seen.known(path) == sha256_of(path)
    path.write_bytes(b"b")
    assert seen.known(path) is None
    assert seen.known(tmp_path / "missing") is None


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_change_is_seen_even_where_size_and_time_are_kept(tmp_path: Path, read: list[str], keep_time: bool) -> None:
    path, seen = settled(tmp_path / "a"), FileHashes(tmp_path / "memory")
    seen.hashes(tmp_path, ["a"])
    before = path.stat()
    path.write_bytes(b"b")
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert seen.hashes(tmp_path, ["a"]) == {"a": sha256_of(path)}
    assert read == ["a", "a"]


def test_a_young_file_is_not_remembered(tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "a").write_bytes(b"a")
    seen = FileHashes(tmp_path / "memory")
    seen.hashes(tmp_path, ["a"])
    seen.hashes(tmp_path, ["a"])
    assert read == ["a", "a"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": [["x"], 1]}', b"\xff", b"[" * 100_000])
def test_a_damaged_memory_costs_time_only(tmp_path: Path, content: bytes) -> None:
    path, seen = settled(tmp_path / "a"), FileHashes(tmp_path / "memory")
    seen.hashes(tmp_path, ["a"])
    (memory,) = (tmp_path / "memory").glob("*.json")
    memory.write_bytes(content)
    assert seen.hashes(tmp_path, ["a"]) == {"a": sha256_of(path)}


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    path = settled(tmp_path / "a")
    (tmp_path / "memory").write_text("a file")
    assert FileHashes(tmp_path / "memory").hashes(tmp_path, ["a"]) == {"a": sha256_of(path)}


def test_files_in_follows_the_names_only(tmp_path: Path) -> None:
    for name in ("b/deep/x", "b/y", "c/z", "top"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert files_in(tmp_path, ["top", "b", "nothing"]) == ["b/deep/x", "b/y", "top"]
