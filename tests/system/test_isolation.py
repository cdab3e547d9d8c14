"""A call in a process of its own: typed both ways, and whatever happens to the process is a result."""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from md_export.errors import ConversionError, MachineError, MdExportError, ParityError, RuntimeFault
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.system import isolation, process
from md_export.system.isolation import Limits, attempt, isolated, result_of
from md_export.system.process import Pool


@dataclass(frozen=True)
class Cargo:
    arrays: tuple[Arrays, ...]
    spec: TensorSpec | None = None
    path: Path = Path()
    numbers: tuple[float, ...] = ()
    one: Array = field(default_factory=lambda: np.zeros(0))


def echo(cargo: Cargo) -> Cargo:
    return cargo


def fail(message: str) -> None:
    raise ParityError(message)


def crash(_: str) -> None:
    raise KeyError("unforeseen")


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def talk(text: str) -> int:
    print(text)
    os.write(2, b"from a library\n")
    return os.getpid()


def fill(count: int) -> int:
    held = bytearray(count)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(60)
    return len(held)


@dataclass(frozen=True)
class Nest:
    folder: Path
    seconds: float = 60
    held: int = 0


def nest(asked: Nest) -> int:
    """Call for a process that holds memory and sleeps, and say who it is."""
    return isolated(hold, ConversionError, "inner")(asked)


def hold(asked: Nest) -> int:
    (asked.folder / "pid").write_text(str(os.getpid()))
    (asked.folder / "ready").touch()
    content = bytearray(b"x") * asked.held
    time.sleep(asked.seconds)
    return len(content)


def exhaust(count: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))
    return len(np.ones(count, np.uint8))


def overfill(count: int) -> int:
    with Path("/dev/full").open("wb") as file:
        return file.write(bytes(count))


def say_and_abort(text: str) -> int:
    print(text, flush=True)
    kill(6)
    return 0


def sleep_and_tell(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def threads_of_torch(_: None) -> int:
    import torch

    return torch.get_num_threads()


def import_module(name: str) -> None:
    importlib.import_module(name)


def leave(_: None) -> None:
    sys.exit(0)


def inner_pid(folder: Path) -> int:
    end = time.monotonic() + 60
    while not (folder / "ready").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return int((folder / "pid").read_text())


def gone(process: int, within_s: float = 10) -> bool:
    end = time.monotonic() + within_s
    while psutil.pid_exists(process):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def seen(_: None) -> dict[str, str]:
    return {name: os.environ.get(name, "") for name in ("PYTHONHASHSEED", "OMP_WAIT_POLICY", "MINE")} | {
        "argv": sys.argv[0],
        "folder": str(Path.cwd()),
    }


def test_dataclasses_and_arrays_arrive_as_they_were() -> None:
    scalar = np.asarray(2.5, np.float16)
    arrays: tuple[Arrays, ...] = ({"a/b": np.arange(6, dtype=np.int8).reshape(2, 3).T, "c": scalar}, {})
    cargo = Cargo(arrays, TensorSpec("x", (1, 2), "float32"), Path("/a"), (math.inf, math.nan, 0.1), np.ones(3) > 0)
    back = isolated(echo, ConversionError, "x")(cargo)
    assert (back.spec, back.path, back.numbers[0], back.numbers[2]) == (cargo.spec, cargo.path, math.inf, 0.1)
    assert math.isnan(back.numbers[1])
    assert back.one.dtype == bool
    for got, want in zip(back.arrays, arrays, strict=True):
        assert got.keys() == want.keys()
        assert all(np.array_equal(got[name], value) and got[name].dtype == value.dtype for name, value in want.items())


def test_our_own_errors_travel_with_their_class() -> None:
    with pytest.raises(ParityError, match=r"^too far$"):
        isolated(fail, ConversionError, "x")("too far")
    assert isinstance(attempt(fail, "x").error, MdExportError)


@pytest.mark.parametrize(
    ("number", "message", "error"),
    [
        (9, "most likely for lack of memory", MachineError),
        (11, r"crashed \(SIGSEGV\)", ConversionError),
        (6, r"crashed \(SIGABRT\)", ConversionError),
    ],
)
def test_a_dying_process_is_reported(number: int, message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"coreml unet: the process .*{message}"):
        isolated(kill, ConversionError, "coreml unet")(number)


def test_an_unforeseen_error_shows_its_last_lines() -> None:
    with pytest.raises(ConversionError, match=r"(?s)coreml unet: .*its last lines:.*KeyError"):
        isolated(crash, ConversionError, "coreml unet")("x")


def test_the_limit_of_time() -> None:
    ended = attempt(sleep, 60.0, Limits(seconds=0.5))
    assert ended.timed_out
    assert ended.death == "the process was stopped at the time limit of 0.5 s"


def test_the_limit_of_memory() -> None:
    ended = attempt(fill, 600_000_000, Limits(most_bytes=500_000_000))
    assert ended.over_memory
    assert "above its limit of 0.50 GB" in ended.death
    assert ended.peak_bytes > 500_000_000
    assert ended.result is None
    with pytest.raises(MachineError, match="x: the process was stopped when it held"):
        result_of(ended, ConversionError, "x")


@pytest.mark.parametrize(
    ("function", "asked", "message"),
    [
        (exhaust, 1 << 40, "Unable to allocate .*free memory or disk space"),
        (overfill, 1 << 20, "No space left on device"),
        (import_module, "no_such_library", "a library does not load: No module named 'no_such_library'"),
        (say_and_abort, "terminate called after throwing an instance of 'std::bad_alloc'", "SIGABRT"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_what_runs(
    function: Callable[[Any], Any], asked: Any, message: str
) -> None:
    with pytest.raises(MachineError, match=message):
        isolated(function, RuntimeFault, "unet.onnx")(asked)


def test_all_that_is_written_is_in_the_log() -> None:
    ended = attempt(talk, "said")
    assert {"said", "from a library"} <= set(ended.log.splitlines())
    assert ended.result != os.getpid()


def test_a_process_sees_the_callers_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINE", "x")
    monkeypatch.chdir(tmp_path)
    found = isolated(seen, ConversionError, "x")(None)
    assert (found["PYTHONHASHSEED"], found["OMP_WAIT_POLICY"], found["MINE"]) == ("0", "PASSIVE", "x")
    assert found["folder"] == str(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_call_that_leaves_without_an_answer_has_died() -> None:
    assert attempt(leave, None).death == "the process failed (status 0)"


def test_the_process_that_a_process_asked_for_ends_with_it(tmp_path: Path) -> None:
    asked = attempt(nest, Nest(tmp_path), Limits(seconds=2.0))
    assert asked.timed_out
    assert gone(inner_pid(tmp_path))


def test_memory_of_the_process_that_a_process_asked_for_counts(tmp_path: Path) -> None:
    ended = attempt(nest, Nest(tmp_path, held=1_700_000_000), Limits(most_bytes=1_500_000_000))
    assert ended.over_memory
    assert gone(inner_pid(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_asked(tmp_path: Path, number: int) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom system.test_isolation import Nest, attempt, nest\n"
        "attempt(nest, Nest(Path(sys.argv[1])))"
    )
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment, stderr=subprocess.DEVNULL)
    inner = inner_pid(tmp_path)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 3  # the server, and two forks
    assert inner in {one.pid for one in family}
    parent.send_signal(number)
    assert parent.wait() != 0
    assert all(gone(one.pid) for one in family)


def test_calls_leave_neither_processes_nor_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    attempt(talk, "first")
    before = psutil.Process().num_fds(), len(psutil.Process().children(recursive=True))
    for _ in range(5):
        attempt(kill, 9)
        attempt(sleep, 60.0, Limits(seconds=0.05))
        attempt(talk, "again")
    assert before == (psutil.Process().num_fds(), len(psutil.Process().children(recursive=True)))
    assert list(tmp_path.iterdir()) == []


def test_calls_of_many_threads_run_side_by_side() -> None:
    with ThreadPoolExecutor(8) as executor:
        started = time.monotonic()
        assert len(set(executor.map(lambda _: attempt(sleep_and_tell, 1.0).result, range(8)))) == 8
        assert time.monotonic() - started < 6


def test_another_server_serves_once_the_first_is_gone() -> None:
    attempt(talk, "first")
    for one in psutil.Process().children():
        one.kill()
    assert attempt(talk, "again").result


def test_a_library_that_kills_whoever_imports_it_hurts_only_those_who_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_library.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    (tmp_path / "broken_library.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pool = Pool()
    monkeypatch.setattr(isolation, "POOL", pool)
    assert attempt(talk, "x", preload=("broken_library", "no_such_library", "deadly_library")).result
    assert attempt(import_module, "deadly_library").death == "the process crashed (SIGSEGV)"
    assert "ZeroDivisionError" in attempt(import_module, "broken_library").log
    pool.close()


def test_what_is_preloaded_is_imported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counted.py").write_text(f"open({str(tmp_path / 'count')!r}, 'a').write('x')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(3):
        assert attempt(import_module, "counted", preload=("counted",)).error is None
    assert (tmp_path / "count").read_text() == "x"


def test_another_number_of_threads_reaches_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    monkeypatch.setattr(isolation, "POOL", pool)
    for count in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        assert attempt(threads_of_torch, None, preload=("torch",)).result == int(count)
    pool.close()


def test_a_new_process_behaves_as_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac."""
    monkeypatch.setattr(process, "WARM", False)
    test_dataclasses_and_arrays_arrive_as_they_were()
    test_our_own_errors_travel_with_their_class()
    test_a_dying_process_is_reported(11, r"crashed \(SIGSEGV\)", ConversionError)
    test_the_limit_of_time()
    test_the_limit_of_memory()
    test_all_that_is_written_is_in_the_log()
    test_a_process_sees_the_callers_environment(monkeypatch, tmp_path)


@pytest.mark.parametrize("how", ["-c", "file", "-m"])
def test_a_program_needs_no_main_guard(tmp_path: Path, how: str) -> None:
    code = (
        "print('top')\nfrom md_export.errors import RuntimeFault\nfrom md_export.system.isolation import isolated\n"
        "from md_export.spec.artifact import data_name\nprint(isolated(data_name, RuntimeFault, 'x')('a'))\n"
    )
    (tmp_path / "program.py").write_text(code)
    arguments = {"-c": ["-c", code], "file": ["program.py"], "-m": ["-m", "program"]}[how]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "top\na.data\n"
