"""A store gives back what was put, whole or not at all, and nothing of it is believed or lands elsewhere."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from md_export.engine import shared_store as store
from md_export.engine.cache import Entry, StoredFile, entry_from_json, entry_to_json
from md_export.engine.keys import key_of
from md_export.engine.plan import CasesResult
from md_export.engine.shared_store import BackedCache, Store, store_url
from md_export.errors import ArtifactError, MissingExtraError, RuntimeFault, UsageError
from md_export.spec.manifest import Drift
from md_export.system.files import sha256_of_text
from md_export.system.workspace import workspace

fsspec = pytest.importorskip("fsspec")
KEY = key_of({"name": "one"})
NAMES = ("sub/a.bin", "b.bin")


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield "memory://store" if request.param == "memory" else f"file://{tmp_path}/a store"
    fsspec.filesystem("memory").store.clear()


def machine(folder: Path, url: str) -> BackedCache:
    return BackedCache(folder, Store(url))


def filled(cache: BackedCache, content: bytes = b"x" * 10) -> Entry:
    """A new entry of two files of the same content."""
    with workspace(cache.work) as work:
        for name in NAMES:
            (work / KEY / name).parent.mkdir(parents=True, exist_ok=True)
            (work / KEY / name).write_bytes(content)
        return cache.put(KEY, "artifact", "one", work / KEY, CasesResult(Drift(1.0, 2.0)))


def contents(url: str) -> dict[str, bytes]:
    system, root = fsspec.core.url_to_fs(url)
    return {name.removeprefix(root): system.cat_file(name) for name in system.find(root)}


def write(url: str, name: str, content: bytes | None) -> None:
    system, root = fsspec.core.url_to_fs(url)
    system.rm_file(f"{root}/{name}")
    if content is not None:
        system.pipe_file(f"{root}/{name}", content)


def test_another_machine_finds_what_was_put(tmp_path: Path, url: str) -> None:
    entry, told = filled(machine(tmp_path / "a", url)), list[str]()
    other = machine(tmp_path / "b", url)
    assert other.read(KEY) is None, "not here yet"
    assert other.get(KEY, told.append) == entry
    assert [(other.files(KEY) / name).read_bytes() for name in NAMES] == [b"x" * 10] * 2
    assert machine(tmp_path / "c", url).require(KEY) == entry
    assert told == []
    assert list(other.work.iterdir()) == []
    with pytest.raises(ArtifactError, match="is gone"):
        other.require(key_of({"name": "two"}))


def test_equal_contents_are_kept_once_and_nothing_else_is_left(tmp_path: Path, url: str) -> None:
    entry = filled(machine(tmp_path / "a", url))
    digest = entry.files["b.bin"].sha256
    assert sorted(contents(url)) == [f"/entries/{KEY}.json", f"/files/{digest}"]


def test_the_record_is_written_last(tmp_path: Path, url: str) -> None:
    cache = machine(tmp_path / "a", url)
    filled(cache)
    altered = cache.files(KEY) / "b.bin"
    altered.chmod(0o644)
    altered.write_bytes(b"y" * 10)
    empty = f"{url}-empty"
    with pytest.raises(ArtifactError, match=r"b\.bin was altered while it was read"):
        Store(empty).put(cache.require(KEY), cache.files(KEY))
    assert contents(empty) == {}


@pytest.mark.parametrize("content", [b"y" * 10, b"x" * 9, b"x" * 11, b"", None])
def test_an_altered_content_is_refused_removed_and_put_again(tmp_path: Path, url: str, content: bytes | None) -> None:
    entry = filled(first := machine(tmp_path / "a", url))
    other, told = machine(tmp_path / "b", url), list[str]()
    write(url, f"files/{entry.files['b.bin'].sha256}", content)
    assert other.get(KEY, told.append) is None
    assert told == ["store: one is damaged (b.bin); it will be built again"]
    assert not other.files(KEY).exists()
    assert contents(url) == {}, "nobody else falls for it"
    first.share(KEY)
    assert other.get(KEY) == entry


def record(**changes: Any) -> bytes:
    """A record whose own hash is right."""
    digest = "0" * 64
    fields = {"schema": 2, "key": KEY, "kind": "artifact", "label": "one", "result": {"kind": "cases"}}
    text = json.dumps({**fields, "files": {"a": {"bytes": 1, "sha256": digest}}, **changes})
    return json.dumps({"sha256": sha256_of_text(text), "entry": text}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        record()[:-9],
        record(key="1" * 64),
        record(schema=1),
        *(
            record(files={name: {"bytes": 1, "sha256": "0" * 64}})
            for name in ("../../x", "/etc/x", "a/../../x", "", "a//b", ".", "a/", "..", "a\0b", "a\\b")
        ),
        *(record(files={"a": {"bytes": 1, "sha256": digest}}) for digest in ("../../x", "0" * 63, "", "G" * 64)),
        record(files={"a": {"bytes": -1, "sha256": "0" * 64}}),
    ],
)
def test_a_damaged_or_hostile_record_is_no_entry(tmp_path: Path, content: bytes) -> None:
    url = (tmp_path / "store").as_uri()
    filled(machine(tmp_path / "a", url))
    write(url, f"entries/{KEY}.json", content)
    assert machine(tmp_path / "b", url).get(KEY) is None
    assert filled(machine(tmp_path / "c", url)) == machine(tmp_path / "b", url).get(KEY), "it is written anew"


def test_records_that_are_right_are_read() -> None:
    """The negative control of the one above."""
    entry = entry_from_json(record().decode())
    assert entry.files == {"a": StoredFile(1, "0" * 64)}
    assert entry_from_json(entry_to_json(entry)) == entry


def test_files_that_stand_in_each_others_way_are_one_error(tmp_path: Path, url: str) -> None:
    file = next(iter(filled(machine(tmp_path / "a", url)).files.values()))
    entry = {"bytes": file.bytes, "sha256": file.sha256}
    write(url, f"entries/{KEY}.json", record(files={"a": entry, "a/b": entry}))
    with pytest.raises(RuntimeFault, match="failed with"):
        machine(tmp_path / "b", url).get(KEY)


def test_what_is_removed_is_gone_for_all(tmp_path: Path, url: str) -> None:
    filled(cache := machine(tmp_path / "a", url))
    cache.remove(KEY)
    assert cache.get(KEY) is None
    assert machine(tmp_path / "b", url).get(KEY) is None


def test_damage_on_one_machine_stays_there(tmp_path: Path, url: str) -> None:
    entry = filled(cache := machine(tmp_path / "a", url))
    (cache.files(KEY) / "b.bin").unlink()
    told = list[str]()
    assert cache.get(KEY, told.append) == entry
    assert told == ["cache: one is damaged (b.bin); it will be built again"]
    assert (cache.files(KEY) / "b.bin").read_bytes() == b"x" * 10


def test_nobody_meets_a_file_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, looked = (tmp_path / "store").as_uri(), list[bytes]()

    def look(given: Any, made: IO[bytes], file: StoredFile) -> bool:
        made.write(given.read(5))
        made.flush()
        assert f"/files/{file.sha256}" not in contents(url)
        looked.append(given.read(1))
        given.seek(5)
        made.write(given.read())
        return True

    monkeypatch.setattr(store, "_copied", look)
    filled(machine(tmp_path / "a", url))
    assert looked == [b"x"]
    monkeypatch.undo()
    assert machine(tmp_path / "b", url).get(KEY) is not None


def test_a_service_that_fails_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    cache = machine(tmp_path / "a", (tmp_path / "store").as_uri())
    with pytest.raises(
        RuntimeFault, match=r"the store file://.*/store failed with .*; this machine and every worker must"
    ):
        filled(cache)


def test_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_url("s3://bucket/x") == "s3://bucket/x"
    assert store_url("a store") == f"file://{tmp_path}/a store"
    with pytest.raises(UsageError, match="name a URL that fsspec supports"):
        Store("nonsense://x")
    known = importlib.import_module("fsspec.registry").known_implementations
    monkeypatch.setitem(known, "other", {"class": "no_such.Thing", "err": "Install it"})
    with pytest.raises(MissingExtraError, match="needs a package that is not installed here: Install it"):
        Store("other://x")
