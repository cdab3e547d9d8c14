"""A fork behaves as the new process that it stands for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import commands

SAY = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["MINE"], __name__, hash("a"))
print("aside", file=sys.stderr)
"""


def command(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def both(code: str, *arguments: str, **options: Any) -> tuple[subprocess.CompletedProcess[str], ...]:
    """What a fork and a new process make of it."""
    argv = command(code, *arguments)
    return tuple(run(argv, capture_output=True, text=True, **options) for run in (commands.run, subprocess.run))


def test_what_a_process_sees_and_says(tmp_path: Path) -> None:
    fork, new = both(SAY, "a", "b", cwd=tmp_path, env={**os.environ, "MINE": "x", "PYTHONHASHSEED": "0"})
    assert (fork.stdout, fork.stderr, fork.returncode) == (new.stdout, new.stderr, 0)
    assert new.stdout.startswith(f"['-c', 'a', 'b'] {tmp_path} x __main__ ")


@pytest.mark.parametrize(
    ("code", "status", "last"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 11)", -11, ""),
    ],
)
def test_how_it_ends(code: str, status: int, last: str) -> None:
    for ended in both(code):
        assert ended.returncode == status
        assert ended.stderr.strip().rpartition("\n")[2] == last


def test_the_time_limit() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        commands.run(command("import time; time.sleep(60)"), timeout=0.5)


def test_what_a_command_isolates_is_a_fork_of_the_same_server() -> None:
    ask = """
import os
from md_export.errors import RuntimeFault
from md_export.system.isolation import isolated
from parents import Nothing, parent
print(os.getppid(), isolated(parent, RuntimeFault, "a fork")(Nothing()).process)
"""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    run = commands.run(command(ask), capture_output=True, text=True, env={**environment})
    first, second = run.stdout.split()
    assert first == second
