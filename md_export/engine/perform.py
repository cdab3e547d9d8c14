"""One step from its request to its entry in the cache. Plain data in and out: any executor may call it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from md_export.engine.cache import Cache, Entry
from md_export.engine.costs import Measured
from md_export.engine.plan import Cost, Step
from md_export.errors import ConversionError, ParityError
from md_export.worker.calling import answer_of, run_worker


@dataclass(frozen=True)
class Task:
    """A step, and where it finds and leaves things.

    Attributes:
        cache: root of the cache.
        work: folder of this build in the cache, for entries in the making.
        places: further folders of the request, by name.
        most_bytes: memory that its processes may hold.
    """

    step: Step
    cache: Path
    work: Path
    places: dict[str, Any] = field(default_factory=dict)
    most_bytes: int = 0


def perform(task: Task, cache: Cache | None = None) -> Cost:
    """Carry a step out in a process of its own and keep what it made; answers with what it took.

    ``cache``: the one at ``task.cache``, where it is more than a folder.

    Raises:
        ConversionError: the process failed, or held more memory than it may.
        ParityError: an export does not compute what the checkpoint computes.
        OutputError: the cache cannot be written.
    """
    cache, step = cache or Cache(task.cache), task.step
    folder = task.work / step.key
    folder.mkdir()
    needed = {key: cache.require(key) for key in step.needs}
    request = {
        **step.request,
        **task.places,
        "kind": step.kind,
        "folder": str(folder),
        "files": {key: str(cache.files(key)) for key in needed},
        "values": {key: entry.value for key, entry in needed.items()},
    }
    started = time.perf_counter()
    ended = run_worker("step", request, most_bytes=task.most_bytes)
    cost = Cost(_peak(ended.peak_bytes, ended.answer or {}), round(time.perf_counter() - started, 2))
    if ended.answer is not None or ended.over_memory:
        Measured(cache.root / "measured").add(step.alike, cost)
    value = answer_of(ended, ConversionError, step.label)
    if "failures" in value:
        raise ParityError("; ".join(value["failures"]))
    others = {"others": others_of(needed.values())} if step.kind == "export" else {}
    cache.put(step.key, step.kind, step.label, folder, value | others)
    return cost


def others_of(needed: Iterable[Entry]) -> dict[str, str]:
    """SHA-256 of each file that an export has from the steps before it."""
    return {name: file.sha256 for entry in needed for name, file in entry.files.items()}


def _peak(seen: int, answer: dict[str, Any]) -> int:
    """What was seen from outside, now and then, or what the worker itself says of its own peak."""
    return max(seen, int(answer.get("measured", {}).get("peak_resident_bytes", 0)))
