"""Wait until a driver in software has computed what was submitted to it.

Reading an output waits for the engine, but for 120 seconds at most; then it fails and leaves the buffer locked for
good. A full-size decoder takes longer in software. The driver's threads are busy until all is computed.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

_TASKS: Final = Path("/proc/self/task")
_PERIOD_S: Final = 0.02
# One look may fall between two pieces of work.
_LOOKS: Final = 5


def wait_for_threads() -> None:
    """Return when no other thread of this process has run at several looks; at once on a system without ``/proc``."""
    quiet = 0
    while _TASKS.is_dir() and quiet < _LOOKS:
        quiet = 0 if others_run() else quiet + 1
        time.sleep(_PERIOD_S)


def others_run() -> bool:
    """Whether a thread other than the calling one is running or waiting for a processor."""
    own = str(threading.get_native_id())
    return any(_state(task) == "R" for task in _TASKS.iterdir() if task.name != own)


def _state(task: Path) -> str:
    try:
        # After the name, which stands in parentheses and may hold some itself.
        return (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):  # the thread ended meanwhile
        return ""
