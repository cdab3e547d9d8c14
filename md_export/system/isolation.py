"""One way into a process: ``isolated(function, …)(request)`` calls a function of a module in a process of its own.

Memory is bounded by the largest component, and a crash of a converter or a runtime is an error message instead of the
end of the run. Request and result are frozen dataclasses, coded from the function's annotations.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Generic, TypeVar, cast

from md_export.errors import MdExportError
from md_export.system.memory import Watch, watching
from md_export.system.wire import adapters, read, write
from md_export.system.worker import Call, read_answer, write_call

Request = TypeVar("Request")
Result = TypeVar("Result")

# Passive: threads that spin between a graph's many small ops make it ten times slower on a busy machine.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Limits:
    """Limits of one call: seconds, and bytes of memory that the process and its children may hold together."""

    seconds: float | None = None
    most_bytes: int | None = None


@dataclass(frozen=True)
class Ended(Generic[Result]):
    """How a call ended.

    Attributes:
        result: what the function returned; None where it raised or the process died.
        error: the error of our own that the function raised.
        death: how the process died; empty where it answered.
        timed_out: the process was stopped at the time limit.
        log: everything that the process wrote to the terminal.
        peak_bytes: most memory that it and its children were seen to hold, where that was limited.
        over_memory: the process was stopped for holding more than it may.
    """

    result: Result | None
    error: MdExportError | None
    death: str
    timed_out: bool
    log: str
    peak_bytes: int = 0
    over_memory: bool = False


def isolated(
    function: Callable[[Request], Result], failure: type[MdExportError], what: str
) -> Callable[[Request], Result]:
    """Return a function that calls ``function``, which a module holds, in a process of its own.

    The returned function raises:
        MdExportError: the error that ``function`` raised, of its own class.
        ``failure``: the process died; the message begins with ``what`` and ends with the last lines of its log.
    """

    def call(request: Request) -> Result:
        return result_of(attempt(function, request), failure, what)

    return call


def result_of(ended: Ended[Result], failure: type[MdExportError], what: str) -> Result:
    """Return what a call returned; raises as :func:`isolated`."""
    if ended.error is not None:
        raise ended.error
    if ended.death:
        raise failure(f"{what}: {ended.death}{_tail(ended.log)}")
    return cast(Result, ended.result)


def attempt(function: Callable[[Request], Result], request: Request, limits: Limits = Limits()) -> Ended[Result]:
    """Call ``function`` in a process of its own; whatever happens to that process is a result."""
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        asked, answered = adapters(function)
        write(request, asked, folder / "request.json")
        write_call(Call(function.__module__, function.__qualname__, tuple(sys.path)), folder)
        log, most = folder / "log.txt", limits.most_bytes
        watched = nullcontext(Watch()) if most is None else watching(folder / "pid", most)
        with log.open("wb") as stream, watched as watch:
            status = _wait(folder, stream, limits.seconds)
        text = log.read_text(encoding="utf-8", errors="replace")
        error, result = read_answer(folder) if status == 0 else None, folder / "result.json"
        if error is not None or (status == 0 and result.is_file()):
            value = None if error else read(answered, result)
            return Ended(value, error, "", False, text, watch.peak_bytes)
        death = _over(watch, most) if watch.over and most else _death(status, limits.seconds)
        return Ended(None, None, death, status is None, text, watch.peak_bytes, watch.over)


def _wait(folder: Path, stream: IO[bytes], limit_s: float | None) -> int | None:
    """The exit status; None at the time limit."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "md_export.system.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**_ENVIRONMENT, **os.environ, "PYTHONHASHSEED": "0"},
            check=False,
            timeout=limit_s,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def _death(status: int | None, limit_s: float | None) -> str:
    if status is None:
        return f"the process was stopped at the time limit of {limit_s:g} s"
    if status == -signal.SIGKILL:
        return "the process was killed, most likely for lack of memory; free memory or export one --component at a time"
    if status < 0:
        return f"the process crashed ({signal.Signals(-status).name})"
    return f"the process failed (status {status})"


def _over(watch: Watch, most_bytes: int) -> str:
    held, most = watch.peak_bytes / 1e9, most_bytes / 1e9
    return f"the process was stopped when it held {held:.2f} GB of memory, more than the {most:.2f} GB it was given"


def _tail(log: str, lines: int = 6) -> str:
    text = log.strip().splitlines()
    return "; its last lines:\n  " + "\n  ".join(text[-lines:]) if text else ""


# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Linux kills the process, whatever a library is doing in it then; elsewhere a thread looks every second."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
