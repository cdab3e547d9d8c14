"""A worker has nobody to answer to once the process that asked is gone: it ends with it, even where that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Final

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
