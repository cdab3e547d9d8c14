"""One way into a process: ``isolated(function, …)(request)`` calls a function of a module in a process of its own.

Memory is bounded by the largest component, and a crash of a converter or a runtime is an error message instead of the
end of the run. Request and result are frozen dataclasses, coded from the function's annotations.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar, cast

from md_export.errors import MachineError, MdExportError, is_exhausted
from md_export.system.memory import Watch, watching
from md_export.system.process import POOL, Exit, environment
from md_export.system.wire import adapters, read, write
from md_export.system.worker import Call, read_error, write_call
from md_export.system.workspace import scratch_folder

# A disk with less, in bytes, has no room for the result of a call, nor for its log.
_LEAST_FREE: Final = 1 << 16
Request = TypeVar("Request")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """Limits of one call: seconds, and bytes of memory that the process and its children may hold together."""

    seconds: float | None = None
    most_bytes: int | None = None


@dataclass(frozen=True)
class Ended(Generic[Result]):
    """Result of a call.

    Attributes:
        result: what the function returned; None where it raised or the process died.
        error: the error of our own that the function raised.
        death: how the process died; empty where it answered.
        timed_out: the process was stopped at the time limit.
        log: everything that the process wrote to the terminal.
        peak_bytes: most memory that the process was seen to hold, with its children where that was limited.
        over_memory: the process was stopped for holding more than it may.
        lacking: the machine lacked memory or disk, so that the death says nothing about what was run.
    """

    result: Result | None
    error: MdExportError | None
    death: str
    timed_out: bool
    log: str
    peak_bytes: int = 0
    over_memory: bool = False
    lacking: bool = False

    @property
    def failure(self) -> str | None:
        """Why there is no result: the error's text, or how the process died; None where the function returned."""
        return str(self.error) if self.error else self.death or None


def isolated(
    function: Callable[[Request], Result], failure: type[MdExportError], what: str, preload: Sequence[str] = ()
) -> Callable[[Request], Result]:
    """Return a function that calls ``function``, which a module holds, in a process of its own.

    ``preload`` as in :func:`attempt`. The returned function raises:
        MdExportError: the error that ``function`` raised, of its own class.
        MachineError: the process was killed, or died for lack of memory or disk.
        ``failure``: the process died otherwise; the message begins with ``what`` and ends with the log's last lines.
    """

    def call(request: Request) -> Result:
        return result_of(attempt(function, request, preload=preload), failure, what)

    return call


def result_of(ended: Ended[Result], failure: type[MdExportError], what: str) -> Result:
    """Return what a call returned; raises as :func:`isolated`."""
    if ended.error is not None:
        raise ended.error
    if ended.death:
        if ended.lacking:
            raise MachineError(f"{what}: {ended.death}")
        raise failure(f"{what}: {ended.death}{_tail(ended.log)}")
    return cast(Result, ended.result)


def attempt(
    function: Callable[[Request], Result], request: Request, limits: Limits = Limits(), preload: Sequence[str] = ()
) -> Ended[Result]:
    """Call ``function`` in a process of its own; whatever happens to that process is a result.

    ``preload``: modules that this and later processes find imported already.
    """
    with scratch_folder() as folder:
        asked, answered = adapters(function)
        write(request, asked, folder / "request.json")
        where = tuple(sys.path), environment(), str(Path.cwd())
        write_call(Call(function.__module__, function.__qualname__, *where), folder)
        (folder / "log.txt").touch()
        ended, watch = _run(folder, (*preload, function.__module__), limits)
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        error, result = read_error(folder), folder / "result.json"
        peak = max(watch.peak_bytes, ended.peak_bytes if ended else 0)
        if ended and ended.status == 0 and (error or result.is_file()):
            return Ended(None if error else read(answered, result), error, "", False, log, peak)
        death = _over(watch, limits) if watch.over else _death(ended, limits)
        lack = "" if ended is None or watch.over else _lack(log, folder)
        lacking = watch.over or bool(lack) or (ended is not None and ended.status == -signal.SIGKILL)
        return Ended(None, None, death + lack, ended is None, log, peak, watch.over, lacking)


def _run(folder: Path, modules: Sequence[str], limits: Limits) -> tuple[Exit | None, Watch]:
    """End of the process and the memory seen; no exit if it was stopped at the time limit."""
    process = POOL.begin(folder, modules)
    try:
        with watching(process.pid, limits.most_bytes) if limits.most_bytes else nullcontext(Watch()) as watch:
            ended = process.wait(limits.seconds)
    finally:
        process.stop()
    return ended, watch


def _death(ended: Exit | None, limits: Limits) -> str:
    if ended is None:
        return f"the process was stopped at the time limit of {limits.seconds:g} s"
    status = ended.status
    if status == -signal.SIGKILL:
        return "the process was killed, most likely for lack of memory; free memory or export one --component at a time"
    if status < 0:
        return f"the process crashed ({signal.Signals(-status).name})"
    return f"the process failed (status {status})"


def _lack(log: str, folder: Path) -> str:
    """Return what the machine lacked, by the log of a process or by the disk of its answer; empty if nothing."""
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        return f"; {folder.parent} is full: free some space there, or name another folder with TMPDIR"
    said = [line.strip() for line in log.splitlines() if is_exhausted(line)]
    return f": {said[-1]:.200}; free memory or disk space (TMPDIR)" if said else ""


def _over(watch: Watch, limits: Limits) -> str:
    held, most = watch.peak_bytes / 1e9, (limits.most_bytes or 0) / 1e9
    return f"the process was stopped when it held {held:.2f} GB of memory, more than the {most:.2f} GB it was given"


def _tail(log: str, lines: int = 6) -> str:
    text = log.strip().splitlines()
    return "; its last lines:\n  " + "\n  ".join(text[-lines:]) if text else ""
