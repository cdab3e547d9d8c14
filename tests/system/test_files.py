from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from md_export.errors import OutputError
from md_export.system.files import require_space, sha256_of, staging


def leftovers(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staging(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    assert (out / "a").read_text() == "1"
    assert leftovers(out.parent) == ["out"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), staging(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise RuntimeError
    assert leftovers(tmp_path) == []


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(OutputError, match="exists; nothing was changed"), staging(out):
        pass
    assert (out / "mine").read_text() == "precious"


def test_output_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="exists"), staging(out):
        out.mkdir()
        (out / "theirs").write_text("1")
    assert leftovers(tmp_path) == ["out"]
    assert (out / "theirs").exists()


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError), staging(out):
        pass


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), staging(tmp_path / "file" / "out"):
        pass


def test_no_space(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "not" / "yet", free // 2)
    with pytest.raises(OutputError, match="free some space"):
        require_space(tmp_path / "not" / "yet", free * 2)


def test_hash_of_a_folder_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / "x" / "sub" / name).write_text(name)
    for name in ("a", "b"):
        (tmp_path / "y" / "sub" / name).write_text(name)
    os.utime(tmp_path / "y" / "sub" / "a", (1, 1))
    assert sha256_of(tmp_path / "x") == sha256_of(tmp_path / "y")
    (tmp_path / "y" / "sub" / "a").rename(tmp_path / "y" / "a")
    assert sha256_of(tmp_path / "x") != sha256_of(tmp_path / "y")
