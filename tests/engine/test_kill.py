"""Killed at any moment, a build leaves nothing half behind, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.toy import Quiet, sound, toy_build, toy_plan
from md_export.engine import cache as cache_module
from md_export.engine import cache as entry_module
from md_export.errors import OutputError
from md_export.system.files import sha256_of
from md_export.system.workspace import is_in_use, sweep, workspace

PROGRAM = Path(__file__).with_name("toy.py")


@pytest.mark.slow
def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    """The program checks the cache and the exports after each kill, and the bytes at the end."""
    arguments = [sys.executable, str(PROGRAM), str(tmp_path), "50", str(time.time_ns())]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("killed 50, ended ")
    assert run.stdout.endswith("left behind 0\n")


def test_what_is_half_is_noticed(tmp_path: Path) -> None:
    """The negative control of the test above."""
    toy_build(tmp_path, Quiet())
    whole = {export.name: "" for export in (tmp_path / "out").glob("export-*")}
    assert "half an export" in sound(tmp_path, whole)
    part = next((tmp_path / "cache" / "entries").glob("*/files/part-0/a"))
    part.chmod(0o644)
    part.write_bytes(b"short")
    assert "half an entry" in sound(tmp_path, whole)


def test_folders_of_dead_processes_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom md_export.system.workspace import workspace\n"
        "with workspace(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x')\n    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"ready\n"
    sweep(tmp_path)
    assert [path.name for path in tmp_path.glob("*/half")] == ["half"]
    assert is_in_use(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert not is_in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_goes_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), workspace(tmp_path / "new") as folder:
        (folder / "x").mkdir()
        raise ZeroDivisionError
    assert list((tmp_path / "new").iterdir()) == []


def at_once(*folders: Path) -> list[int]:
    """Exit statuses of builds that run beside each other."""
    children = []
    for folder in folders:
        process = os.fork()
        if process == 0:
            os._exit(1 if toy_build(folder, Quiet()).failures else 0)
        children.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]


def test_two_builds_at_once_in_one_folder(tmp_path: Path) -> None:
    assert at_once(tmp_path, tmp_path) == [0, 0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"export-{number}" for number in range(3)}
    again = Quiet()
    assert {one.status for one in toy_build(tmp_path, again).exports} == {"up to date"}
    assert again.ran == []


def test_two_builds_at_once_in_one_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "cache").symlink_to(tmp_path / "cache")
    assert at_once(*folders) == [0, 0]
    assert len(list((tmp_path / "cache" / "entries").iterdir())) == len(toy_plan().steps)
    assert sha256_of(folders[0] / "out") == sha256_of(folders[1] / "out")


def test_a_full_disk_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        for module in (cache_module, entry_module):
            patched.setattr(module, "to_disk", full)
        listener = Quiet()
        outcome = toy_build(tmp_path, listener)
    assert {one.status for one in outcome.exports} == {"failed"}
    assert "No space left on device; free some space with: md-export cache prune" in listener.failures[0]
    assert list((tmp_path / "cache" / "entries").glob("*")) == []
    assert list((tmp_path / "out").iterdir()) == []
    assert toy_build(tmp_path, Quiet()).failures == ()


def test_an_output_that_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    listener = Quiet()
    with pytest.raises(OutputError, match="cannot be written"):
        toy_build(tmp_path, listener)
    assert listener.ran == []
