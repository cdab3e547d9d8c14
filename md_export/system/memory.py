"""Memory of processes: how much they hold, limits on it, and the release of mapped pages."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

if TYPE_CHECKING:
    from torch import Tensor, nn


_EVERY_S: Final = 0.1


@dataclass
class Watch:
    """What was seen: most bytes resident at once in all processes together, and whether that ended them."""

    peak_bytes: int = 0
    over: bool = False


@contextmanager
def watching(process: int, most_bytes: int) -> Iterator[Watch]:
    """Watch a process and those that it started; kill them all when they hold more than ``most_bytes``."""
    watch, ended = Watch(), threading.Event()
    thread = threading.Thread(target=_watch, args=(process, most_bytes, watch, ended), daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def _watch(process: int, most_bytes: int, watch: Watch, ended: threading.Event) -> None:
    while not ended.wait(_EVERY_S):
        processes = _started_by(process)
        watch.peak_bytes = max(watch.peak_bytes, sum(map(_resident, processes)))
        if watch.peak_bytes > most_bytes:
            watch.over = True
            _kill(processes)
            return


def _started_by(process: int) -> list[psutil.Process]:
    """The process and its children, and the members of its group if it leads one; none after it has ended."""
    found: dict[int, psutil.Process] = {}
    with suppress(OSError, psutil.Error):
        first = psutil.Process(process)
        found = {one.pid: one for one in (first, *first.children(recursive=True))}
        if os.getpgid(process) == process:
            found |= {one: psutil.Process(one) for one in psutil.pids() if _group(one) == process}
    return list(found.values())


def _group(process: int) -> int:
    with suppress(OSError):
        return os.getpgid(process)
    return -1


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


# Of Linux: uapi/asm-generic/mman-common.h and Documentation/admin-guide/mm/pagemap.rst.
_DONT_NEED: Final = 4
_ENTRY_BYTES: Final = 8
_PRESENT, _SWAPPED, _OF_A_FILE = 1 << 63, 1 << 62, 1 << 61
_PAGEMAP: Final = Path("/proc/self/pagemap")


def release_weights(module: nn.Module) -> None:
    """Release the resident pages of a checkpoint's mapped weights; the module is not changed.

    A conversion reads each weight once or twice, in the order of the graph: between its stages none need be in memory.
    """
    release_tensors((*module.parameters(), *module.buffers()))


def release_tensors(tensors: Iterable[Tensor]) -> None:
    """Release the pages of tensors on the CPU; see :func:`release_pages`."""
    for tensor in tensors:
        if tensor.device.type == "cpu":
            release_pages(tensor.data_ptr(), tensor.nbytes)


def release_pages(address: int, size: int) -> bool:
    """Release the pages that lie wholly in ``size`` bytes at ``address``; they are read again when needed.

    Only where that loses nothing: all of them are pages of a mapped file to which nobody has written, or were never
    touched. Else, and on systems other than Linux, nothing happens.

    Returns:
        Whether they were released.
    """
    first, end = -(-address // mmap.PAGESIZE), (address + size) // mmap.PAGESIZE
    if first >= end or sys.platform != "linux" or not _is_clean(first, end - first):
        return False
    start, length = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t((end - first) * mmap.PAGESIZE)
    return bool(_libc().madvise(start, length, _DONT_NEED) == 0)


def _is_clean(first: int, count: int) -> bool:
    """Whether each page is one of a file, or none at all; one that was written to is a private copy."""
    import numpy as np

    try:
        with _PAGEMAP.open("rb", buffering=0) as stream:
            content = os.pread(stream.fileno(), count * _ENTRY_BYTES, first * _ENTRY_BYTES)
    except OSError:
        return False
    entries = np.frombuffer(content, dtype="<u8")
    there = entries & np.uint64(_PRESENT | _SWAPPED) != 0
    kept = entries & np.uint64(_PRESENT | _OF_A_FILE) == np.uint64(_PRESENT | _OF_A_FILE)
    return len(entries) == count and not bool((there & ~kept).any())


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
