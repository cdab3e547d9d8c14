"""Measure and limit the memory of processes, and release mapped pages."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
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
_WORTH_A_FILE: Final = 1 << 20


@dataclass
class Watch:
    """Result of watching: peak resident bytes of all processes together, and whether the limit was exceeded."""

    peak_bytes: int = 0
    over: bool = False


@contextmanager
def watching(process: int, most_bytes: int) -> Iterator[Watch]:
    """Watch a process and its descendants; kill them all if they hold more than ``most_bytes``."""
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
    """Return the processes of the group that a process leads, else it and its descendants; none after it has ended."""
    with suppress(OSError, psutil.Error):
        if os.getpgid(process) == process:
            return [psutil.Process(one) for one in psutil.pids() if _group(one) == process]
        first = psutil.Process(process)
        return [first, *first.children(recursive=True)]
    return []


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
    """Kill all descendants of this process."""
    _kill(psutil.Process().children(recursive=True))


def installed_bytes() -> int:
    """Return the memory of this machine in bytes."""
    return int(psutil.virtual_memory().total)


# Linux constants, from uapi/asm-generic/mman-common.h and Documentation/admin-guide/mm/pagemap.rst.
_DONT_NEED: Final = 4
_ENTRY_BYTES: Final = 8
_PRESENT, _SWAPPED, _OF_A_FILE = 1 << 63, 1 << 62, 1 << 61
_PAGEMAP: Final = Path("/proc/self/pagemap")


def release_weights(module: nn.Module) -> None:
    """Release the resident pages of a checkpoint's mapped weights; the module is not changed.

    A conversion reads each weight once or twice, in the order of the graph, so between its stages no weight needs to
    stay in memory.
    """
    release_tensors((*module.parameters(), *module.buffers()))


def in_a_file(tensor: Tensor) -> Tensor:
    """Return a copy in a mapped, unnamed scratch file, so that :func:`release_pages` can release its memory.

    Returns:
        ``tensor`` itself if it is small, or if there is no room for such a file.
    """
    import numpy as np
    import torch

    if tensor.nbytes < _WORTH_A_FILE:
        return tensor
    try:
        with tempfile.TemporaryFile() as file:
            file.write(tensor.numpy().data.cast("B"))
            file.flush()
            return torch.from_numpy(np.memmap(file, tensor.numpy().dtype, mode="c", shape=tuple(tensor.shape)))
    except OSError:
        return tensor


def release_tensors(tensors: Iterable[Tensor]) -> None:
    """Release the pages of tensors on the CPU; see :func:`release_pages`."""
    for tensor in tensors:
        if tensor.device.type == "cpu":
            release_pages(tensor.data_ptr(), tensor.nbytes)


def release_pages(address: int, size: int) -> bool:
    """Release the pages that lie wholly in ``size`` bytes at ``address``; they are read again when needed.

    They are released only if no data is lost: every page is an unmodified page of a mapped file, or was never touched.
    Otherwise, and on systems other than Linux, nothing happens.

    Returns:
        Whether the pages were released.
    """
    first, end = -(-address // mmap.PAGESIZE), (address + size) // mmap.PAGESIZE
    if first >= end or sys.platform != "linux" or not _is_clean(first, end - first):
        return False
    start, length = ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t((end - first) * mmap.PAGESIZE)
    return bool(_libc().madvise(start, length, _DONT_NEED) == 0)


def _is_clean(first: int, count: int) -> bool:
    """Return whether each page belongs to a file or does not exist; a modified page is a private copy."""
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
