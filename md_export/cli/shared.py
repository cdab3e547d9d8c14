"""Helpers that several commands share. Heavy imports are inside the function bodies."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from md_export.errors import MissingExtraError, ParityError, RecipeError, UsageError
from md_export.system.terminal_text import visible

if TYPE_CHECKING:
    from rich.table import Table

    from md_export.parity.pin import Pin


def checkpoint_or_nano(checkpoint: Path | None) -> Path:
    """Return the given checkpoint; if None, print a line and return the nano checkpoint that ships."""
    if checkpoint is not None:
        return checkpoint
    from md_export.spec.shipped_files import nano_checkpoint

    click.echo("no checkpoint named: using the nano checkpoint that ships with md-export", err=True)
    return nano_checkpoint()


def pinned(pin_file: Path | None, allowed_signers: Path | None) -> Pin | None:
    """Read the pin, if one is given, and print what it covers and who signed it."""
    from md_export.parity.pin import read_pin

    if pin_file is None:
        if allowed_signers:
            raise UsageError("--allowed-signers goes with --pin; name the pin, or leave it out")
        return None
    pin, signer = read_pin(pin_file, allowed_signers)
    signed = f"signed by {signer}" if signer else "no signature required (--allowed-signers)"
    note(f"{pin_file} covers {pin}; {signed}")
    return pin


@contextmanager
def options_checked() -> Iterator[None]:
    """Raise a RecipeError about the values of options as a UsageError, so that the exit code is 2."""
    try:
        yield
    except RecipeError as error:
        raise UsageError(str(error)) from error


def require_report() -> None:
    """Raise MissingExtraError if a library for HTML reports is not installed; imports nothing."""
    for module in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"a page needs {module}, which is not installed: pip install 'md-export[report]'")


def recipe_named(given: Path) -> Path:
    """Return the path of the recipe that ``--recipe`` names: a file, or the name of a recipe that ships.

    Raises:
        UsageError: neither exists. A missing path with a suffix is returned; the recipe reader reports it.
    """
    from md_export.spec.shipped_files import builtin_recipes, recipe_file

    found = recipe_file(given)
    if not found.suffix and not found.exists():
        raise UsageError(f"no recipe {given}; give a .toml file or one of {', '.join(builtin_recipes())}")
    return found


def progress(steps: int) -> Any:
    """Return a context manager that yields ``report(text)``; see :mod:`md_export.report.progress`."""
    from md_export.report.progress import progress_to_stderr

    return progress_to_stderr(steps)


def show(json_file: Path | None, result: Any, *tables: Any) -> None:
    """Print a result as tables, and write it as JSON if ``json_file`` is given.

    With ``-`` for ``json_file``, the JSON goes to standard output and the tables to standard error.
    """
    from md_export.report.tables import console

    if json_file is not None:
        _write_json(json_file, result)
    terminal = console(stderr=_takes_stdout(json_file))
    for table in tables:
        terminal.print(visible(table) if isinstance(table, str) else table, soft_wrap=isinstance(table, str))


def conclude(
    json_file: Path | None, result: object, failures: Sequence[str], tables: Iterable[Table | str], passed: str
) -> None:
    """Show a result, then print the line ``passed``, or raise ParityError if there are ``failures``."""
    show(json_file, result, *tables)
    if failures:
        raise ParityError("; ".join(failures))
    say(json_file, passed)


def note(text: str) -> None:
    """Print a line to standard error, so that it does not mix with results."""
    click.echo(visible(text), err=True)


def say(json_file: Path | None, text: str) -> None:
    """Print a line to the stream that shows the tables."""
    click.echo(visible(text), err=_takes_stdout(json_file))


def say_annotations(json_file: Path | None, file: str | None, title: str, failures: Iterable[str]) -> None:
    """Print failures as GitHub annotations of ``file``; print nothing if ``file`` is None."""
    from md_export.report.ci import error_annotations

    for line in error_annotations(title, failures, file) if file else ():
        say(json_file, line)


def _takes_stdout(json_file: Path | None) -> bool:
    return str(json_file) == "-"


def _write_json(file: Path, result: Any) -> None:
    from pydantic import TypeAdapter

    # Serialize by the runtime types of the values: the details in a verdict depend on the engine.
    text = TypeAdapter(Any).dump_json(result, indent=2).decode()
    if _takes_stdout(file):
        click.echo(text)
    else:
        file.write_text(text + "\n", encoding="utf-8")


def cache_root(given: Path | None) -> Path:
    """Return the given cache folder, or the default one."""
    from md_export.engine.cache import default_root

    return given or default_root()
