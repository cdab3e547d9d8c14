"""Tasks that are still named by strings, until their callers name functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from md_export import errors
from md_export.errors import MdExportError
from md_export.system.isolation import Limits, _tail, attempt


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


@dataclass(frozen=True)
class Asked:
    """A task and its request."""

    task: str
    request: str


def do(asked: Asked) -> str:
    """Carry out a task."""
    from md_export.worker import TASKS

    return json.dumps(TASKS[asked.task](json.loads(asked.request)))


def run_worker(
    task: str, request: dict[str, Any], limit_s: float | None = None, most_bytes: int | None = None
) -> Ended:
    """Run one task in a process of its own; whatever it does is a result.

    It is stopped after ``limit_s`` seconds, or when it and its children hold more than ``most_bytes`` of memory.
    """
    ended = attempt(do, Asked(task, json.dumps(request)), Limits(limit_s, most_bytes))
    answer = None if ended.result is None else json.loads(ended.result)
    if ended.error is not None:
        answer = {"error": type(ended.error).__name__, "message": str(ended.error)}
    return Ended(answer, ended.death, ended.timed_out, ended.log, ended.peak_bytes, ended.over_memory)
