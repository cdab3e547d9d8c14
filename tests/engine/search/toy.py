"""What stands for a measurement in other processes: quick, and as bad as it is told to be."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from md_export.engine.search.frontier import Form
from md_export.engine.search.measurements import Pass
from md_export.engine.search.measuring import Job, Key, measure_all, open_journal
from md_export.engine.search.spread import local_workers
from md_export.errors import CheckpointError

KEY = Key("a" * 64, "onnx", ("unet",), ("int8",), (), "nearest", "b" * 64, {"md-export": "1"})


def measure(request: dict[str, Any]) -> Pass:
    number = request["number"]
    if number == request.get("dies"):
        # Not before the others had their turn, where their results are to be seen.
        end = time.monotonic() + request.get("patience", 0.5)
        while time.monotonic() < end and Path(request["journal"]).read_bytes().count(b"\n") < request["lines"]:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    if number == request.get("raises"):
        raise CheckpointError(f"no weight {number}")
    noise = float("nan") if number == request.get("nan") else 1 / (number + 3)
    time.sleep(request.get("seconds", 0.0))
    path = "0" if number == request.get("other") else f"{number}"
    return Pass("unet", path, Form("int8"), noise, 0.5)


def surroundings(_request: dict[str, Any]) -> tuple[bool, str]:
    """Whether a worker leaves interrupts to others, and how many threads it may have."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN, os.environ["OMP_NUM_THREADS"]


def jobs(count: int, **how: float | str) -> list[Job[dict[str, Any]]]:
    names = (("unet", f"{number}", "int8") for number in range(count))
    return [Job(name, "unet", {"number": int(name[1]), **how}) for name in names]


def main(journal: Path) -> None:
    """A search that takes seconds, to be interrupted or killed."""
    with open_journal(journal, KEY) as book, local_workers(2) as found:
        measure_all(jobs(400, seconds=0.05), measure, found, book)


if __name__ == "__main__":
    # Under its own name, as workers import it.
    from engine.search import toy

    toy.main(Path(sys.argv[1]))
