"""Hostile folders and files (:mod:`attacks`), each opened below limits on memory, time and the disk (:mod:`jail`)."""

from __future__ import annotations

import ast
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import commands
import jail
from attacks import ATTACKS
from jail import Outcome, jailed
from md_export.cli import main

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "security.md"


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """Of all attacks."""
    code = f"import sys; sys.path[:0] = [{str(TESTS)!r}]; import jail; jail.main('attacks', sys.argv[1])"
    folder = tmp_path_factory.mktemp("attacks")
    done = commands.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line.pop("name"): Outcome(**line) for line in lines}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(outcomes: Mapping[str, Outcome], name: str) -> None:
    outcome, says = outcomes[name], ATTACKS[name].says
    assert not outcome.death
    if says is None:
        assert not outcome.error, outcome
        return
    assert outcome.ours, outcome
    assert re.search(says, outcome.message)
    assert len(outcome.message) < 20_000
    assert "\x1b" not in outcome.message


def sleep() -> None:
    time.sleep(10)


def spin() -> None:
    while True:
        pass


def hold() -> None:
    # More than a process that has freed much may still have reserved.
    bytearray(16 * jail.MEMORY)


def fill() -> None:
    with Path("/dev/shm/attack" if Path("/dev/shm").is_dir() else "attack").open("wb") as file:  # noqa: S108
        try:
            file.write(bytes(jail.FILE_BYTES + 1))
        finally:
            Path(file.name).unlink()


def fault() -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("act", "noticed"),
    [
        (sleep, Outcome("", "", "SIGALRM")),
        (spin, Outcome("", "", "SIGXCPU")),
        (hold, "MemoryError"),
        (fill, "OSError"),
        (fault, "KeyError"),
    ],
)
def test_the_jail_notices(act: Callable[[], Any], noticed: Outcome | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail, "WALL_SECONDS", 1 if act is sleep else 60)
    monkeypatch.setattr(jail, "CPU_SECONDS", 1)
    monkeypatch.setattr(jail, "FILE_BYTES", 1 << 16)
    outcome = jailed(act)
    if isinstance(noticed, Outcome):
        assert outcome == noticed
    else:
        assert (outcome.error, outcome.ours) == (noticed, False)


def rows() -> list[str]:
    return [line for line in TABLE.read_text().splitlines() if line.startswith("| ") and "---" not in line]


def test_the_table_of_attacks_is_whole() -> None:
    """Each row of docs/security.md names tests that exist, and each attack has its row."""
    named = set()
    for row in rows():
        for file, test, case in re.findall(r"`(test_\w+)::(\w+)(?:\[([^`]+)\])?`", row):
            trees = [ast.parse(path.read_text()) for path in TESTS.rglob(f"{file}.py")]
            nodes = [node for tree in trees for node in ast.walk(tree)]
            assert test in {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, row
            if file == Path(__file__).stem and test == "test_attack":
                assert case in ATTACKS, row
                named.add(case)
    assert named == set(ATTACKS)


def test_every_row_names_a_test() -> None:
    assert [row for row in rows()[1:] if "`test_" not in row and not row.startswith("| tried")] == []


def test_errors_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["md-export", "inspect", "\x1b[2J\u202enowhere"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: \\x1b[2J\\u202enowhere does not exist")
