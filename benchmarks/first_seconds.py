"""Seconds that a user waits first: help, a wrong path, a small export; and what the terminal shows in an export.

    python benchmarks/first_seconds.py [--repeats 5] [--only NAME]... [--demo]
    python benchmarks/first_seconds.py --record [ARGUMENT]...

The first form prints CPU seconds (user and system, all processes) and wall seconds of each command, the median of
``--repeats`` runs, each launched anew with an empty cache of builds; with ``--demo``, those of the commands of
``make demo``, too. The second form runs ``md-export ARGUMENT...`` (default: ``onnx --fp16 -o A``, the nano checkpoint)
in a terminal of 140 columns, and prints once a second what its last line shows.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import re
import resource
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from statistics import median
from typing import Final

import click

from export_cpu import COMMANDS, HERE, PR_SET_CHILD_SUBREAPER, wait_for_orphans

PROGRAM: Final = (sys.executable, "-c", "from md_export.cli import main; main()")
# Each with its exit status.
FIRST: Final = {
    "help": (0, ("--help",)),
    "wrong checkpoint": (1, ("onnx", "--fp16", "/nope", "-o", "out")),
    "wrong export": (1, ("verify", "/nope")),
    "wrong artifact": (1, ("lint", "/nope.tflite")),
    "output exists": (1, ("onnx", "--fp16", "-o", ".")),
    "wrong recipe": (1, ("onnx", "--recipe", "/nope.toml", "-o", "out")),
    "nano export": (0, COMMANDS["export"][0]),
}
_COLUMNS: Final = 140
# Escape sequences of a terminal, and what begins a line anew.
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ANEW: Final = re.compile(r"[\r\n]+|\x1b\[2K")


def environment(cache: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE), "MD_EXPORT_CACHE": cache}


def seconds(status: int, commands: Sequence[tuple[str, ...]]) -> tuple[float, float]:
    """CPU and wall seconds of commands, one after another in a new folder; each must end with ``status``."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        wall = 0.0
        for arguments in commands:
            argv = [*PROGRAM, *arguments]
            done = subprocess.run(argv, cwd=folder, env=environment(cache), capture_output=True, text=True, check=False)
            wall += time.monotonic() - start
            assert done.returncode == status, done.stderr
            wait_for_orphans()
            start = time.monotonic()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def record(arguments: Sequence[str]) -> int:
    """Run a command in a terminal, print what its last line shows once a second, and return its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, _COLUMNS, 0, 0))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        known = {**environment(cache), "TERM": "xterm", "COLUMNS": str(_COLUMNS)}
        argv = [*PROGRAM, *arguments]
        process = subprocess.Popen(argv, cwd=folder, env=known, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        start, shown, text = time.monotonic(), 0, ""
        while True:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    text = (text + os.read(ours, 1 << 16).decode(errors="replace"))[-8192:]
                except OSError:  # the other end was closed
                    break
            if time.monotonic() - start > shown:
                print(f"{shown:4d} s  {last_line(text)}", flush=True)
                shown += 1
        return process.wait()


def last_line(text: str) -> str:
    """What a terminal shows in the last line that is not empty."""
    lines = [_ESCAPE.sub("", line).rstrip() for line in _ANEW.split(text)]
    return next((line for line in reversed(lines) if line), "")


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each command.")
@click.option("--only", multiple=True, type=click.Choice(list(FIRST)), help="Measure this row only.")
@click.option("--demo", is_flag=True, help="The commands of make demo, too.")
@click.option("--record", "records", is_flag=True, help="Show the terminal of ARGUMENTS at intervals of 1 s instead.")
def main(arguments: tuple[str, ...], repeats: int, only: tuple[str, ...], demo: bool, records: bool) -> None:
    """Print the seconds of the first commands, or what the terminal shows during one."""
    if records:
        sys.exit(record(arguments or COMMANDS["export"][0]))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    rows = {name: (status, (command,)) for name, (status, command) in FIRST.items() if name in (only or FIRST)}
    print("| command | CPU s | wall s |\n| --- | ---: | ---: |")
    for name, (status, commands) in {**rows, **({"demo": (0, COMMANDS["demo"])} if demo else {})}.items():
        found = [seconds(status, commands) for _ in range(repeats)]
        cpu, wall = (median(run[place] for run in found) for place in (0, 1))
        words = "make demo" if name == "demo" else f"`md-export {' '.join(commands[0])}`"
        print(f"| {name}: {words} | {cpu:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()
