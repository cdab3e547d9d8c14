"""Entries are whole or not there, damage is noticed, and what is not used goes first."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from md_export.engine.cache import Cache, default_root
from md_export.engine.keys import key_of
from md_export.engine.plan import ArtifactResult, CasesResult
from md_export.errors import ArtifactError, OutputError
from md_export.spec.artifact import ArtifactEntry, Measured
from md_export.spec.manifest import Drift
from md_export.system.workspace import workspace


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def filled(cache: Cache, name: str, size: int = 10) -> str:
    """The key of a new entry of so many bytes."""
    key = key_of({"name": name})
    with workspace(cache.work) as work:
        folder = work / key
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a.bin").write_bytes(b"x" * size)
        cache.put(key, "artifact", name, folder, CasesResult(Drift(1.0, 2.0)))
    return key


def test_what_was_put_is_found(cache: Cache) -> None:
    key = filled(cache, "one")
    entry = cache.get(key)
    assert entry is not None
    assert entry.result == CasesResult(Drift(1.0, 2.0))
    assert (entry.label, entry.bytes, list(entry.files)) == ("one", 10, ["sub/a.bin"])
    assert (cache.files(key) / "sub" / "a.bin").read_bytes() == b"x" * 10
    assert cache.get(key_of({"name": "two"})) is None


@pytest.mark.parametrize("right", [True, False])
def test_the_hash_of_an_artifact_is_the_one_that_its_worker_computed(cache: Cache, right: bool) -> None:
    key, content = key_of({"name": "unet"}), b"x" * 10
    digest = hashlib.sha256(content if right else b"other").hexdigest()
    entry = ArtifactEntry("unet", "unet.onnx", digest, 10, "", "", {}, {}, (), (), (), Measured(0.0, 0))
    with workspace(cache.work) as work:
        (work / key).mkdir()
        for name in ("unet.onnx", "beside.bin"):
            (work / key / name).write_bytes(content)
        put = cache.put(key, "artifact", "unet", work / key, ArtifactResult(entry))
    assert put.files["unet.onnx"].sha256 == digest
    assert put.files["beside.bin"].sha256 == hashlib.sha256(content).hexdigest()
    said: list[str] = []
    assert (cache.get(key, said.append) is not None) == right
    assert [("damaged (unet.onnx)" in line) for line in said] == [True] * (not right)


def test_the_second_of_one_key_is_dropped(cache: Cache) -> None:
    assert filled(cache, "one") == filled(cache, "one")
    assert len(list(cache.list())) == 1
    assert list(cache.work.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "damage"),
    [
        ("files/sub/a.bin", b"y" * 10, "one is damaged (sub/a.bin)"),
        ("files/sub/a.bin", None, "one is damaged (sub/a.bin)"),
        ("entry.json", b"{}", "is damaged (its record)"),
        ("entry.json", b'{"sha256": "0", "entry": "{}"}', "is damaged (its record)"),
        ("entry.json", b"\xff", "is damaged (its record)"),
        ("entry.json", b"[" * 100_000, "is damaged (its record)"),
        ("entry.json", None, "is damaged (its record)"),
    ],
)
def test_damage_is_told_and_removed(cache: Cache, name: str, content: bytes | None, damage: str) -> None:
    key, said = filled(cache, "one"), list[str]()
    path = cache.files(key).parent / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert cache.get(key, said.append) is None
    assert damage in said[0]
    assert cache.get(key, said.append) is None
    assert len(said) == 1, "it is gone, not damaged a second time"
    with pytest.raises(ArtifactError, match="is gone; run the same command again"):
        cache.require(key)
    assert filled(cache, "one") == key
    assert cache.get(key) is not None


def test_an_entry_under_another_key_is_no_entry(cache: Cache) -> None:
    key, other = filled(cache, "one"), key_of({"name": "other"})
    cache.files(key).parent.rename(cache.files(other).parent)
    assert cache.read(other) is None


def test_pruning_by_age_and_by_size(cache: Cache) -> None:
    keys = [filled(cache, name, 100) for name in ("old", "middle", "new")]
    for age, key in zip((3, 2, 1), keys, strict=True):
        os.utime(cache.files(key).parent / "entry.json", (1000 - age, 1000 - age))
    assert [one.entry.label for one in cache.prune(998, None)] == ["old"]
    assert [one.entry.label for one in cache.prune(None, 200)] == []
    assert [one.entry.label for one in cache.prune(None, 150)] == ["middle"]
    assert [one.entry.label for one in cache.list()] == ["new"]


def test_what_is_used_is_not_old(cache: Cache) -> None:
    key = filled(cache, "one")
    record = cache.files(key).parent / "entry.json"
    os.utime(record, (1000, 1000))
    assert cache.get(key) is not None
    assert cache.prune(2000, None) == ()


def test_nothing_is_pruned_under_a_build(cache: Cache) -> None:
    filled(cache, "one")
    with workspace(cache.work), pytest.raises(OutputError, match="prune it when the build has ended"):
        cache.prune(None, 0)
    assert len(cache.prune(None, 0)) == 1


def test_the_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MD_EXPORT_CACHE", "/some/where")
    assert default_root() == Path("/some/where")
    monkeypatch.delenv("MD_EXPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setattr("sys.platform", "linux")
    assert default_root() == Path("/x/md-export")
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_root().parts[-3:] == ("Library", "Caches", "md-export")
