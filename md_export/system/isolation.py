"""Call a function in a separate process: ``isolated(function, …)(request)``.

Memory is bounded by the largest component, and a crash of a converter or a runtime becomes an error message instead of
ending the run. Request and result are frozen dataclasses, serialized by the function's annotations.
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

# Bytes. A disk with less free space is full: a call could write neither its result nor its log.
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
        result: value that the function returned; None if it raised or the process died.
        error: the MdExportError that the function raised.
        death: how the process died; empty if it returned a result or an error.
        timed_out: the process was stopped at the time limit.
        log: standard output and standard error of the process.
        peak_bytes: largest resident memory observed, including child processes if memory was limited.
        over_memory: the process was stopped because it exceeded the memory limit.
        lacking: the machine ran out of memory or disk, so the death is no result about the artifact or checkpoint.
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
        """Text of the error, or how the process died; None if the function returned."""
        return str(self.error) if self.error else self.death or None


def isolated(
    function: Callable[[Request], Result], failure: type[MdExportError], what: str, preload: Sequence[str] = ()
) -> Callable[[Request], Result]:
    """Return a function that calls ``function``, defined at module level, in a separate process.

    ``preload`` as in :func:`attempt`. The returned function raises:
        MdExportError: the error that ``function`` raised, with the same class.
        MachineError: the process was killed, or died for lack of memory or disk.
        ``failure``: the process died for another reason; the message is ``what`` and the log's last lines.
    """

    def call(request: Request) -> Result:
        return result_of(attempt(function, request, preload=preload), failure, what)

    return call


def result_of(ended: Ended[Result], failure: type[MdExportError], what: str) -> Result:
    """Return the result of a call; raises as :func:`isolated`."""
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
    """Call ``function`` in a separate process; return its result, its error, or how the process died.

    ``preload``: modules to import once, before this process and later ones are forked.
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
    """Return the exit of the process, None if it was stopped at the time limit, and the memory observed."""
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
    """Return whether the log of a process or the disk shows a lack of memory or space, as text; empty if neither."""
    if shutil.disk_usage(folder).free < _LEAST_FREE:
        return f"; {folder.parent} is full: free some space there, or name another folder with TMPDIR"
    said = [line.strip() for line in log.splitlines() if is_exhausted(line)]
    return f": {said[-1]:.200}; free memory or disk space (TMPDIR)" if said else ""


def _over(watch: Watch, limits: Limits) -> str:
    held, most = watch.peak_bytes / 1e9, (limits.most_bytes or 0) / 1e9
    return f"the process was stopped when it held {held:.2f} GB of memory, above its limit of {most:.2f} GB"


def _tail(log: str, lines: int = 6) -> str:
    text = log.strip().splitlines()
    return "; its last lines:\n  " + "\n  ".join(text[-lines:]) if text else ""
