"""How much memory a worker process and its children hold, and an end to them where that is too much.

A limit on address space (``RLIMIT_AS``) would not do: weights are mapped, and runtimes reserve far more than they use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_EVERY_S: Final = 0.1


@dataclass
class Watch:
    """What was seen: most bytes resident at once in all processes together, and whether that ended them."""

    peak_bytes: int = 0
    over: bool = False


@contextmanager
def watching(pid_file: Path, most_bytes: int) -> Iterator[Watch]:
    """Watch the process whose number ``pid_file`` will hold, and its children; kill them all above ``most_bytes``."""
    watch, ended = Watch(), threading.Event()
    thread = threading.Thread(target=_watch, args=(pid_file, most_bytes, watch, ended), daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def _watch(pid_file: Path, most_bytes: int, watch: Watch, ended: threading.Event) -> None:
    while not ended.wait(_EVERY_S):
        processes = _tree(pid_file)
        watch.peak_bytes = max(watch.peak_bytes, sum(map(_resident, processes)))
        if watch.peak_bytes > most_bytes:
            watch.over = True
            _kill(processes)
            return


def _tree(pid_file: Path) -> list[psutil.Process]:
    """The process and its children; none before it has started and after it has ended."""
    with suppress(OSError, ValueError, psutil.Error):
        first = psutil.Process(int(pid_file.read_text()))
        return [first, *first.children(recursive=True)]
    return []


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def kill_children() -> None:
    """End all processes that this one has started."""
    _kill(psutil.Process().children(recursive=True))


def installed_bytes() -> int:
    """Memory of this machine."""
    return int(psutil.virtual_memory().total)
