"""Help and usage of every command: sections, one-line summaries, examples that parse, exit code 2."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from md_export.cli import SECTIONS, cli
from md_export.cli.paths import CHECKPOINT
from md_export.errors import UsageError


@pytest.fixture(autouse=True)
def no_path_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths of the examples do not exist."""
    for kind in (click.Path, type(CHECKPOINT)):
        monkeypatch.setattr(kind, "convert", lambda _self, value, *_: Path(value))
    monkeypatch.setattr("md_export.spec.loras.parse_loras", tuple)


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command and subcommand with the words that name it, the root's being ()."""
    yield path, command
    for name, one in getattr(command, "commands", {}).items():
        yield from walk(one, (*path, name))


COMMANDS = dict(walk(cli))
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


def parse(words: list[str]) -> tuple[str, ...]:
    """Parse arguments of md-export without running them; return the names of the command that they reach."""
    command: click.Command = cli
    path: tuple[str, ...] = ()
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(click.Context(command), words)
        assert name and found
        command, path = found, (*path, name)
    command.make_context(path[-1], words)
    return path


def example(command: click.Command) -> str:
    first, blank, line, *_ = cleandoc(command.help or "").splitlines()
    assert first.endswith(".") and not blank
    assert line.startswith("Example: md-export ")
    return line.removeprefix("Example: md-export ")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_starts_with_what_the_command_does_and_an_example_that_parses(path: tuple[str, ...]) -> None:
    line = example(COMMANDS[path])
    # Click wraps at 78 columns, indented by two.
    assert len(f"  Example: md-export {line}") <= 78
    reached = parse(shlex.split(line))
    assert reached[: len(path)] == path
    with pytest.raises(click.UsageError, match="No such option"):
        parse([*shlex.split(line), "--no-such-option"])


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_has_a_help_text_that_starts_with_a_verb(path: tuple[str, ...]) -> None:
    helps = [one.help or "" for one in LEAVES[path].params if isinstance(one, click.Option)]
    for text in helps:
        first = text.split()[0].rstrip(":,")
        assert first[0].isupper() and first not in {"A", "An", "The", "Only", "What", "Of", "That"}, text


def test_the_first_page_shows_every_command_once_in_its_section_with_a_whole_sentence() -> None:
    page = CliRunner().invoke(cli, ["--help"], env={"COLUMNS": "80"}).output
    titles = [f"{title}:" for title in SECTIONS]
    lines = page.splitlines()
    assert [line for line in lines if line in titles] == titles
    listed = lines[lines.index(titles[0]) :]
    assert "..." not in "".join(listed)
    for (name,), command in ((path, one) for path, one in COMMANDS.items() if len(path) == 1):
        (summary, *_) = (command.help or "").splitlines()
        assert [line.split(maxsplit=1)[1] for line in listed if line.split()[:1] == [name]] == [summary]


def exit_code(words: list[str]) -> int:
    """Exit code as ``main`` gives it."""
    found = CliRunner().invoke(cli, words)
    return getattr(found.exception, "exit_code", found.exit_code)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_usage_mistakes_exit_2(path: tuple[str, ...]) -> None:
    given = shlex.split(example(LEAVES[path]))
    assert exit_code([*given, "--no-such-option"]) == 2
    for one in LEAVES[path].params:
        if isinstance(one, click.Option) and not one.is_flag and not isinstance(one.type, click.Path):
            if one.type is not click.STRING:
                assert exit_code([*given, one.opts[0], "no-such-value"]) == 2, one.name
            assert exit_code([*given, one.opts[0]]) == 2, one.name
    if any(one.required for one in LEAVES[path].params):
        assert exit_code(list(path)) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        "onnx --steps 0 -o OUT",
        "onnx --guidance 3 -o OUT",
        "onnx --steps 4 --guidance nan -o OUT",
        "onnx --sampler ddim -o OUT",
        "onnx --chunks 1 -o OUT",
        "onnx --rewrite no_such_rewrite -o OUT",
        "golden OUT --prompt a --guidance 3 -o OUT",
        "generate a --steps 4 --guidance -1 -o OUT",
        "generate a --strength 7 -o OUT",
        "build no-such-recipe -o OUT",
        "audit OUT OUT",
        "cache prune",
        "crosscheck",
        "report OUT",
    ],
)
def test_values_that_cannot_be_meant_exit_2(arguments: str, tmp_path: Path) -> None:
    assert exit_code(arguments.replace("OUT", str(tmp_path / "out")).split()) == 2
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_missing_is_no_usage_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert exit_code(["verify", str(tmp_path / "none")]) == 1
    assert exit_code(["cache", "list", "--cache", str(tmp_path / "none")]) == 0
    assert UsageError.exit_code == 2
