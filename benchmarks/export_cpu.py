"""CPU seconds of a first export, of its verification and of ``make demo``, this checkout against another.

    python benchmarks/export_cpu.py --against DIR [--rounds 3] [--only export|verify|demo]

``md-export onnx --fp16 -o A``, ``md-export verify A`` and the commands of ``make demo``, all of the nano checkpoint:
user and system time with all processes. The two checkouts alternate, each with an empty cache of builds. Prints the
median of each in seconds, and the ratio of this checkout to the other.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Final

import click

HERE: Final = Path(__file__).resolve().parents[1]
# linux/prctl.h: processes whose parent ended become children of this one.
PR_SET_CHILD_SUBREAPER: Final = 36
PROMPT: Final = "a large red circle on the left, white background"
MADE: Final = {"coreml": "--fp16", "tflite": "--int8", "onnx": "--int8"}
COMMANDS: Final = {
    "export": (("onnx", "--fp16", "-o", "A"),),
    "verify": (("verify", "A"),),
    "demo": (
        *((target, flag, "-o", target) for target, flag in MADE.items()),
        ("generate", PROMPT, "-o", "torch.png"),
        *(("generate", PROMPT, "--artifacts", target, "-o", f"{target}.png") for target in MADE),
        ("report", *MADE, "-o", "report.html"),
    ),
}


def cpu_seconds(checkout: Path, commands: Sequence[tuple[str, ...]], folder: Path) -> float:
    """Run ``md-export`` of a checkout in ``folder``; returns user and system seconds of all processes."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "MD_EXPORT_CACHE": cache}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        for arguments in commands:
            argv = [sys.executable, "-c", "from md_export.cli import main; main()", *arguments]
            subprocess.run(argv, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            wait_for_orphans()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wait_for_orphans() -> None:
    """Wait for servers and workers that outlive the command; only then does their time count as a child's."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def measure(checkout: Path, names: Sequence[str]) -> dict[str, float]:
    """Return the CPU seconds of each of ``COMMANDS``, one after the other in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: cpu_seconds(checkout, COMMANDS[name], Path(folder)) for name in names}


@click.command()
@click.option("--against", type=click.Path(path_type=Path, exists=True), required=True, help="The other checkout.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each checkout.")
@click.option("--only", type=click.Choice(list(COMMANDS)), multiple=True, help="Not all of them.")
def main(against: Path, rounds: int, only: tuple[str, ...]) -> None:
    """Print CPU seconds of both checkouts and their ratio."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    names = only or tuple(COMMANDS)
    runs = [(measure(HERE, names), measure(against.resolve(), names)) for _ in range(rounds)]
    for name in names:
        ours, theirs = (median(run[place][name] for run in runs) for place in (0, 1))
        print(f"{name}: {ours:.1f} s here, {theirs:.1f} s there, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
