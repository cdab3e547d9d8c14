"""What the machine lacks, or who stops it, is no verdict on a model: exit 1 in one line, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from md_export.errors import ArtifactError, MachineError, MissingExtraError, UsageError
from md_export.parity.judge import judge, verify
from md_export.spec.manifest import check_export
from md_export.spec.tensors import Arrays, read_npz
from md_export.system.files import irregular
from md_export.system.terminal_text import visible
from md_export.targets.execution import Execution
from mutations import edit_json
from support import Exported

COMMAND = [sys.executable, "-c", "from md_export.cli import main; main()"]
# A command that writes for ten minutes.
SLOW = """
import sys, time
from pathlib import Path
from md_export import cli
from md_export.system.files import staging
from md_export.system.workspace import scratch_folder

@cli.cli.command()
def slow():
    with staging(Path("out")) as folder, scratch_folder() as scratch:
        (folder / "half").write_text("x")
        (scratch / "half").write_text("x")
        print("ready", flush=True)
        time.sleep(600)

sys.argv = ["md-export", "slow"]
cli.main()
"""


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of so many KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)  # noqa: S607


@pytest.mark.parametrize("small_disk", [16, 256, 1600], indirect=True)
def test_a_full_folder_of_temporary_files_is_no_verdict(exported: Exported, small_disk: Path) -> None:
    out = exported("onnx", "int8")
    environment = os.environ | {"TMPDIR": str(small_disk)}
    run = subprocess.run([*COMMAND, "verify", str(out)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert re.search("[Nn]o space left|is full", line), run.stderr
    assert run.stderr.endswith(f"{line}\n")
    assert list(small_disk.glob(".md-export-*")) == []


@pytest.mark.parametrize("small_disk", [256], indirect=True)
def test_an_export_onto_a_full_disk_rejects_nothing(nano: Path, small_disk: Path, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(small_disk), "MD_EXPORT_CACHE": str(tmp_path / "cache")}
    arguments = ["onnx", str(nano), "--fp32", "--component", "text_encoder", "-o", str(tmp_path / "out")]
    run = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) in (["cache", "disk"], ["disk"])


@pytest.mark.parametrize("error", [MachineError("killed"), MissingExtraError("no onnxruntime")])
def test_a_worker_that_was_killed_or_lacks_a_library_ends_the_verification(
    exported: Exported, error: Exception
) -> None:
    def execute(_target: str, _path: Path, _batches: Sequence[Arrays]) -> Execution:
        raise error

    with pytest.raises(type(error), match=str(error)):
        judge(exported("onnx", "int8"), execute=execute)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_who_is_stopped_leaves_nothing_or_the_next_run_sweeps_it(tmp_path: Path, number: int, status: int) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def begin() -> subprocess.Popen[str]:
        environment = os.environ | {"TMPDIR": str(temporary)}
        started = subprocess.Popen(
            [sys.executable, "-c", SLOW],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell lets what it runs in the background ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        return started

    def left() -> list[str]:
        return [path.name for path in (*tmp_path.iterdir(), *temporary.iterdir()) if path != temporary]

    stopped = begin()
    stopped.send_signal(number)
    _, said = stopped.communicate(timeout=30)
    assert stopped.returncode == status
    assert "Traceback" not in said
    assert bool(left()) == (number == signal.SIGKILL)
    again = begin()
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=30)
    assert left() == []


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_broken_link(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


@pytest.mark.parametrize("name", ["unet.onnx", "unet.onnx.data"])
@pytest.mark.parametrize("plant", [as_pipe, as_device])
def test_what_is_no_file_is_not_opened(copy_of: Exported, name: str, plant: Callable[[Path], None]) -> None:
    out = copy_of("onnx", "int8")
    (out / name).unlink(missing_ok=True)
    plant(out / name)
    signal.alarm(60)  # a pipe that is opened blocks for ever
    (line,) = [line for line in check_export(out).differences if name in line]
    assert "is a pipe, a device" in line
    with pytest.raises(ArtifactError, match="is a pipe, a device"):
        verify(out)
    signal.alarm(0)


@pytest.mark.parametrize("plant", [as_pipe, as_device, as_broken_link])
def test_what_is_no_file_is_found_inside_a_package(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    assert irregular(tmp_path) is None
    plant(tmp_path / "a" / "b" / "c")
    assert irregular(tmp_path) == tmp_path / "a" / "b" / "c"


def test_a_file_without_end_is_not_hashed(copy_of: Exported) -> None:
    """A sparse file of a terabyte: its size alone tells that it is another."""
    out = copy_of("onnx", "int8")
    os.truncate(out / "vae_decoder.onnx", 1 << 40)
    signal.alarm(60)
    assert check_export(out).differences == ("vae_decoder.onnx was altered",)
    signal.alarm(0)


def test_names_that_are_no_text_are_said_without_moving_the_cursor(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    (out / "\x1b[2Jgone").touch()
    (out / os.fsdecode(b"caf\xe9")).touch()
    run = subprocess.run([*COMMAND, "manifest", "check", str(out)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "\\x1b[2Jgone is not in the manifest" in run.stdout
    assert "caf\\udce9 is not in the manifest" in run.stdout
    assert visible("\ud800") == "\\ud800"


def test_a_package_with_a_name_that_is_no_text_was_altered(copy_of: Exported) -> None:
    out = copy_of("coreml", "fp16")
    (out / "unet.mlpackage" / "Data" / os.fsdecode(b"\xff")).touch()
    assert check_export(out).differences == ("unet.mlpackage was altered",)


def test_text_of_an_artifact_in_a_fault_is_made_visible(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    name = "decoder\x1b[31m.onnx"
    shutil.move(out / "vae_decoder.onnx", out / name)
    edit_json(out / "manifest.json", lambda manifest: manifest["artifacts"][-1].update(file=name))
    run = subprocess.run([*COMMAND, "verify", str(out)], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "\x1b" not in run.stdout + run.stderr


def test_an_array_alone_is_no_set_of_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(UsageError, match=r"x\.npy is not an \.npz file; write an array per input"):
        read_npz(tmp_path / "x.npy")
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(UsageError, match=r"x\.npz is not an \.npz file"):
        read_npz(tmp_path / "x.npz")
