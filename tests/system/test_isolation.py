"""A call in a process of its own: typed both ways, and whatever happens to the process is a result."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from md_export.errors import ConversionError, MdExportError, ParityError
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.system.isolation import Limits, attempt, isolated


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
    ("number", "message"),
    [(9, "most likely for lack of memory"), (11, r"crashed \(SIGSEGV\)"), (6, r"crashed \(SIGABRT\)")],
)
def test_a_dying_process_is_reported(number: int, message: str) -> None:
    with pytest.raises(ConversionError, match=rf"coreml unet: the process .*{message}"):
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
    assert "more than the 0.50 GB it was given" in ended.death
    assert ended.peak_bytes > 500_000_000
    assert ended.result is None


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
