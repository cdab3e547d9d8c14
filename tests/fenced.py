"""Commands in the documentation: fenced blocks of shell, their words, and what is wrong with one that nobody ran.

A block of ``sh`` or ``bash`` holds commands. A block of ``console`` holds commands after ``$`` and what they print.
``<!-- test: run -->`` in the line before a block says that a test runs it, ``<!-- test: bench, REASON -->`` that only
``make bench`` does. Every command is checked without running it, marked or not.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final
from unittest.mock import patch

import click

from md_export.cli import cli, paths

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / name for name in ("recipes/README.md", "golden/nano/training/README.md", "tests/README.md")),
    *(ROOT / "examples" / name / "README.md" for name in ("ios", "android")),
    *sorted((ROOT / "docs").glob("*.md")),
)
_SHELL: Final = ("sh", "bash", "shell", "console")
_BLOCK: Final = re.compile(
    r"^(?P<mark><!-- test: (?P<what>.*?) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_ASSIGNMENT: Final = re.compile(r"[A-Z_]+=")
_BETWEEN: Final = frozenset({"&&", "||", ";", "&", "|"})
# Programs of others, which a reader has, or which the page says how to get.
_OTHERS: Final = frozenset(
    {
        ".",
        "adb",
        "cd",
        "cp",
        "curl",
        "dask",
        "gh",
        "git",
        "gradle",
        "grep",
        "ls",
        "mkdir",
        "model-explorer",
        "pipx",
        "swift",
        "uv",
    }
)
# What a page prints in place of lines that it leaves out.
_LEFT_OUT: Final = "…"
_STATUS: Final = re.compile(r"# exit (\d)")
_BOX: Final = re.compile(r"[\s\u2500-\u257f]+")
_KITS: Final = ROOT / "md_export/parity/device/scripts"


@dataclass(frozen=True)
class Block:
    """One fenced block; ``line`` is that of its first line."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def scripts(self) -> list[tuple[str, list[str]]]:
        """Each command line, continued lines joined, with the lines that it prints."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if self.language != "console":
                found.append((line, []))
            elif line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
        return found

    @property
    def commands(self) -> list[list[str]]:
        """The words of each simple command."""
        return [words for line, _ in self.scripts for words in simple_commands(line)]


def blocks(page: Path) -> Iterator[Block]:
    """Yield every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(page, line, found["language"], found["text"], found["what"] or "")


def shell_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that hold commands."""
    return [block for block in blocks(page) if block.language in _SHELL]


def simple_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line: without comments, assignments in front and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in _BETWEEN:
            words.append(word)
            continue
        while words and _ASSIGNMENT.match(words[0]):
            words.pop(0)
        if ">" in words:
            words = words[: words.index(">")]
        if words[:1] == ["/usr/bin/time"]:
            words = words[2:]
        if words:
            yield words
        words = []


def fault(words: Sequence[str]) -> str | None:
    """Return what is wrong with a command, found without running it; None where nothing is."""
    program, *rest = words
    match Path(program).name if program.startswith((".venv/bin/", ".ci/")) else program:
        case "md-export":
            return usage_fault(rest)
        case "python" | "python3":
            return _missing(rest)
        case "pytest":
            return _missing([word for word in rest if "/" in word][:1])
        case "pip":
            return _unknown_extras(rest)
        case "make":
            return _unknown_targets(rest)
        case name if name.startswith("./run"):
            return None if (_KITS / name).is_file() else f"{name} is in no kit"
        case name if name.endswith("finish-on-mac.sh"):
            return None
    return None if program in _OTHERS else f"{program} is no program that the documentation may use; see _OTHERS"


def usage_fault(arguments: Sequence[str], partial: bool = False) -> str | None:
    """Return what click says of the arguments of ``md-export``: an unknown command or option, a missing argument.

    ``partial``: arguments and values of options may be missing.
    """
    command: click.Command = cli
    context = click.Context(cli, info_name="md-export")
    rest = list(arguments)
    try:
        with redirect_stdout(StringIO()), _any_path():
            while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
                _, found, rest = command.resolve_command(context, rest)
                assert found is not None
                command = found
            command.make_context(command.name, rest, parent=context)
    except click.exceptions.Exit:
        return None
    except click.ClickException as error:
        lacks = isinstance(error, (click.MissingParameter, click.BadOptionUsage))
        return None if partial and lacks else error.format_message()
    return None


@contextmanager
def _any_path() -> Iterator[None]:
    """Paths and LoRAs are taken as they are written: a page's files are not here."""
    with ExitStack() as patches:
        for kind in (click.Path, type(paths.CHECKPOINT)):
            patches.enter_context(patch.object(kind, "convert", lambda _self, value, _param, _ctx: Path(value)))
        patches.enter_context(patch("md_export.spec.loras.parse_loras"))
        yield


def _missing(arguments: Sequence[str]) -> str | None:
    """Return the script that is not there."""
    scripts = [word.split("::")[0] for word in arguments[:1] if "/" in word and word[0] not in "/."]
    return next((f"{script} is not there" for script in scripts if not (ROOT / script).exists()), None)


def _unknown_extras(arguments: Sequence[str]) -> str | None:
    named = {
        extra for word in arguments if (found := re.search(r"\[([\w,]+)\]", word)) for extra in found[1].split(",")
    }
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return f"no extra is called {', '.join(sorted(named - {*known}))}" if named - {*known} else None


def _unknown_targets(arguments: Sequence[str]) -> str | None:
    named = {word for word in arguments if "=" not in word}
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    return f"the Makefile has no target {', '.join(sorted(named - known))}" if named - known else None


Call = Callable[[list[str], Path], "subprocess.CompletedProcess[str]"]


def run_page(page: Path, folder: Path, call: Call, marks: Sequence[str] = ("run",)) -> Iterator[str]:
    """Run the marked commands of a page in ``folder``, and yield what is not as the page says.

    ``call`` runs ``md-export``. A comment ``# exit 3`` behind a command is its exit code. Numbers and the widths of
    tables may differ from what the page prints.
    """
    for block in shell_blocks(page):
        for line, printed in block.scripts if block.mark.split(",")[0] in marks else ():
            said, status = "", 0
            for words in simple_commands(line):
                done = call(words, folder) if words[0] == "md-export" else _shell(words, folder)
                said, status = said + done.stdout + done.stderr, done.returncode
            expected = int(found[1]) if (found := _STATUS.search(line)) else 0
            if status != expected:
                yield f"{line}: exit {status}: {said}"
            there = {_without_numbers(one) for one in said.splitlines()}
            yield from (
                f"{line}: does not print: {one}" for one in printed if _without_numbers(one) not in there | {""}
            )


def _shell(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def _without_numbers(line: str) -> str:
    return re.sub(r"\d+", "0", _BOX.sub(" ", line).replace(_LEFT_OUT, "").strip())
