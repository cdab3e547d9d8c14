"""Processes that may not take much: what an attack does to memory, time and the disk is a result, not an accident.

``main`` runs a table of attacks, each in a fork of its own below hard limits, and prints one JSON line for each.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

MEMORY: Final = 1 << 30  # beyond what the imported libraries hold
CPU_SECONDS: Final = 10
WALL_SECONDS: Final = 60
FILE_BYTES: Final = 1 << 28


@dataclass(frozen=True)
class Outcome:
    """How an attack ended: ``error`` is the exception's class, empty where there was none; ``death`` the signal."""

    error: str
    message: str
    death: str = ""
    ours: bool = False


def jailed(act: Callable[[], Any], plant: Callable[[], Any] = lambda: None) -> Outcome:
    """Call ``act`` in a fork below the limits, and before them ``plant``: threads of it would not survive a fork."""
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            plant()
            _limit()
            answer.write(json.dumps(asdict(_called(act))).encode())
            answer.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        answer.seek(0)
        content = answer.read()
    if os.WIFSIGNALED(status) or not content:
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
        return Outcome("", "", name)
    return Outcome(**json.loads(content))


def _called(act: Callable[[], Any]) -> Outcome:
    from md_export.errors import MdExportError

    try:
        act()
    except MdExportError as error:
        return Outcome(type(error).__name__, str(error), ours=True)
    except BaseException as error:  # noqa: BLE001 (a panic of a Rust library is none of Exception's)
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(type(error).__name__, f"{str(error)[:300]} ({last.filename}:{last.lineno})")
    return Outcome("", "")


def _limit() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    # At the soft limit SIGXCPU, at the hard one SIGKILL, which could be anything.
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_SECONDS, int(used) + CPU_SECONDS + 5))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing too much is an OSError
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(WALL_SECONDS)


def main(module: str, folder: str) -> None:
    """Run ``module``'s ATTACKS, each on a copy of what its ``prepare`` makes in ``folder``."""
    attacks = importlib.import_module(module)
    importlib.import_module("transformers.models.clip.tokenization_clip")  # once, and not in each fork
    sound = jailed(lambda: None, lambda: attacks.prepare(Path(folder)))
    assert sound == Outcome("", ""), sound
    for name, attack in attacks.ATTACKS.items():
        outcome = jailed(*attacks.steps(attack, Path(folder), name))
        print(json.dumps({"name": name, **asdict(outcome)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
