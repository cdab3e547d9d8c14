"""One process per component and target: memory is bounded by the largest component, and a crash of a
converter or a runtime is an error message instead of the end of the run.

Requests and answers are JSON files; a worker is ``python -m md_export.worker``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from md_export import errors
from md_export.errors import MdExportError
from md_export.system.isolation import _ENVIRONMENT, _death, _over, _tail
from md_export.system.memory import Watch, watching


@dataclass(frozen=True)
class Ended:
    """How a worker ended.

    Attributes:
        answer: what it found, or ``error`` and ``message`` of our own; None where it died.
        death: how it died.
        timed_out: it was stopped at the time limit.
        log: everything that it wrote to the terminal.
        peak_bytes: most memory that it and its children were seen to hold, where that was limited.
        over_memory: it was stopped for holding more than it may.
    """

    answer: dict[str, Any] | None
    death: str
    timed_out: bool
    log: str
    peak_bytes: int = 0
    over_memory: bool = False


def call_worker(task: str, request: dict[str, Any], failure: type[MdExportError], what: str) -> dict[str, Any]:
    """Run one task in a process of its own and return its answer.

    Raises:
        MdExportError: the error that the worker reported, of its own class.
        ``failure``: the worker died; the message ends with its last lines.
    """
    return answer_of(run_worker(task, request), failure, what)


def answer_of(ended: Ended, failure: type[MdExportError], what: str) -> dict[str, Any]:
    """What a worker found; raises as :func:`call_worker`."""
    if ended.answer is None:
        raise failure(f"{what}: {ended.death}{_tail(ended.log)}")
    if "error" in ended.answer:
        raise getattr(errors, ended.answer["error"])(ended.answer["message"])
    return ended.answer


def run_worker(
    task: str, request: dict[str, Any], limit_s: float | None = None, most_bytes: int | None = None
) -> Ended:
    """Run one task in a process of its own; whatever it does is a result.

    It is stopped after ``limit_s`` seconds, or when it and its children hold more than ``most_bytes`` of memory.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        log = folder / "log.txt"
        watched = nullcontext(Watch()) if most_bytes is None else watching(folder / "pid", most_bytes)
        with log.open("wb") as stream, watched as watch:
            status = _wait(task, folder, stream, limit_s)
        text = log.read_text(encoding="utf-8", errors="replace")
        answer = folder / "answer.json"
        if status == 0 and answer.is_file():
            return Ended(json.loads(answer.read_text(encoding="utf-8")), "", False, text, watch.peak_bytes)
        death = _over(watch, most_bytes) if watch.over and most_bytes else _death(status, limit_s)
        return Ended(None, death, status is None, text, watch.peak_bytes, watch.over)


def _wait(task: str, folder: Path, stream: IO[bytes], limit_s: float | None) -> int | None:
    """The exit status; None at the time limit."""
    try:
        return subprocess.run(
            [sys.executable, "-m", "md_export.worker", task, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**_ENVIRONMENT, **os.environ, "PYTHONHASHSEED": "0"},
            check=False,
            timeout=limit_s,
        ).returncode
    except subprocess.TimeoutExpired:
        return None
