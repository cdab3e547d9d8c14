"""Options, names and output helpers that the commands share. Heavy imports are inside the function bodies."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from md_export.cli.paths import EXISTING, FILE, GOLDEN, NEW, PATH
from md_export.errors import MissingExtraError, ParityError, UsageError
from md_export.spec.names import METHODS
from md_export.spec.variant import Chunks, Size
from md_export.system.terminal_text import visible

if TYPE_CHECKING:
    from rich.table import Table

    from md_export.parity.pin import Pin


class _SizeType(click.ParamType[Size]):
    """``512``, or ``512x768`` for width and height."""

    name = "WIDTH[xHEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """Return the size; click reports anything else as a usage error."""
        sides = [int(side) for side in str(value).split("x") if side.isascii() and side.isdigit() and len(side) < 6]
        if len(sides) != str(value).count("x") + 1 or len(sides) > 2 or not all(sides):
            self.fail(f"{value!r:.40} is no size; give pixels, as 512, or width and height, as 512x768", param, ctx)
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


size_option = click.option("--size", type=_SizeType(), help="Pixels of a picture.  [default: the checkpoint's own]")


class _ChunksType(click.ParamType[Chunks]):
    """A number, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Chunks:
        """Return the number or ``auto``; click reports anything else as a usage error."""
        if value == "auto":
            return "auto"
        if not (str(value).isascii() and str(value).isdigit() and len(str(value)) < 4):
            self.fail(f"{value!r:.40} is no number of chunks; give 2 or more, or auto", param, ctx)
        return int(value)


chunks_option = click.option(
    "--chunks",
    type=_ChunksType(),
    help="Cut the UNet or transformer into this many files, or as many as keep each below 1 GB (auto).  "
    "[default: one file]",
)
timestep_option = click.option(
    "--timestep", type=click.IntRange(min=0), help="Timestep of the one step.  [default: the checkpoint's last]"
)
clip_skip_option = click.option(
    "--clip-skip",
    type=click.IntRange(min=0),
    default=0,
    help="Leave out this many of the text encoder's last layers, as diffusers' clip_skip.",
)
steps_option = click.option("--steps", type=int, help="Sample in this many steps.  [default: one step]")
sampler_option = click.option(
    "--sampler",
    type=click.Choice(METHODS),
    help="Sampling method, with --steps.  [default: that of the checkpoint's scheduler, or the recipe's]",
)
guidance_option = click.option(
    "--guidance",
    type=float,
    help="Scale of guidance, with --steps; 1: none. UNets that embed it (LCM) compute one sample all the same.  "
    "[default: the recipe's, or 7.5; 1 for LCM, TCD; 8.5 where it is embedded]",
)
negative_option = click.option(
    "--negative-prompt",
    "negative",
    help="Prompt that guidance leads away from, with --steps.  [default: the empty one]",
)


def _loras(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Return the LoRAs that were named; raises UsageError where a file is missing."""
    from md_export.spec.loras import parse_loras

    parse_loras(value)
    return value


lora_option = click.option(
    "--lora",
    "loras",
    metavar="FILE[:SCALE]",
    multiple=True,
    callback=_loras,
    help="Fuse a LoRA (.safetensors, or peft's folder) into the weights; repeatable.",
)
json_option = click.option("--json", "json_file", type=FILE, help="Write the result as JSON, too ('-': to stdout).")
output_option = click.option("-o", "--output", type=NEW, required=True, help="Folder to write; must not exist.")
golden_option = click.option("--golden", "golden_dir", type=GOLDEN, help="Golden cases.  [default: those in OUT]")
jobs_option = click.option("--jobs", type=click.IntRange(min=1), help="Steps at a time.  [default: one for two cores]")
junit_option = click.option("--junit", type=FILE, help="Write the verdicts as JUnit XML, for a CI system.")
markdown_option = click.option("--markdown", type=FILE, help="Write the verdicts as Markdown, for pull requests.")
cache_option = click.option(
    "--cache", type=PATH, help="Folder of the cache.  [default: $MD_EXPORT_CACHE, else the platform's]"
)
no_cache_option = click.option(
    "--no-cache", "keep", flag_value=False, default=True, help="Take nothing from the cache, and keep nothing in it."
)
annotate_option = click.option(
    "--annotate", metavar="FILE", help="Print each failure as a GitHub error annotation at FILE, such as the recipe."
)

pin_option = click.option(
    "--pin",
    "pin_file",
    type=EXISTING,
    help="Require what this file of manifest seal says; exit 3 names each difference.",
)
allowed_signers_option = click.option(
    "--allowed-signers",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Require a signature of the pin by a key in this list, as OpenSSH and git write it.",
)


def checkpoint_or_nano(checkpoint: Path | None) -> Path:
    """Return the checkpoint that was named; without one, print a line and return the nano checkpoint that ships."""
    if checkpoint is not None:
        return checkpoint
    from md_export.spec.shipped_files import nano_checkpoint

    click.echo("no checkpoint named: using the nano checkpoint that ships with md-export", err=True)
    return nano_checkpoint()


def pinned(pin_file: Path | None, allowed_signers: Path | None) -> Pin | None:
    """Return the pin that was named, if one was, and print what it covers and who signed it."""
    from md_export.parity.pin import read_pin

    if pin_file is None:
        if allowed_signers:
            raise UsageError("--allowed-signers goes with --pin; name the pin, or leave it out")
        return None
    pin, signer = read_pin(pin_file, allowed_signers)
    note(f"{pin_file} covers {pin}; " + (f"signed by {signer}" if signer else "no signature asked (--allowed-signers)"))
    return pin


def require_report() -> None:
    """Raise MissingExtraError where a library that draws reports is not installed; nothing is imported."""
    for module in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"a page needs {module}, which is not installed: pip install 'md-export[report]'")


def recipe_named(given: Path) -> Path:
    """Return the file that ``--recipe`` names: an existing file, or a recipe that ships under that name.

    Raises:
        UsageError: neither exists; a missing file with a suffix is reported by the reader of recipes instead.
    """
    from md_export.spec.shipped_files import builtin_recipes, recipe_file

    found = recipe_file(given)
    if not found.suffix and not found.exists():
        raise UsageError(f"no recipe {given}; name a .toml file or one of {', '.join(builtin_recipes())}")
    return found


def progress(steps: int) -> Any:
    """Return a context manager that yields ``report(text)``; see :mod:`md_export.report.progress`."""
    from md_export.report.progress import progress_to_stderr

    return progress_to_stderr(steps)


def show(json_file: Path | None, result: Any, *tables: Any) -> None:
    """Print a result as tables, and write it as JSON if requested; with ``-`` standard output gets only the JSON."""
    from md_export.report.tables import console

    if json_file is not None:
        _write_json(json_file, result)
    terminal = console(stderr=_takes_stdout(json_file))
    for table in tables:
        terminal.print(visible(table) if isinstance(table, str) else table, soft_wrap=isinstance(table, str))


def conclude(
    json_file: Path | None, result: object, failures: Sequence[str], tables: Iterable[Table | str], passed: str
) -> None:
    """Show a verdict and then the line ``passed``; raise ParityError if there are ``failures``."""
    show(json_file, result, *tables)
    if failures:
        raise ParityError("; ".join(failures))
    say(json_file, passed)


def note(text: str) -> None:
    """Write a line to standard error, where it does not mix with results."""
    click.echo(visible(text), err=True)


def say(json_file: Path | None, text: str) -> None:
    """Print a line where the tables go."""
    click.echo(visible(text), err=_takes_stdout(json_file))


def say_annotations(json_file: Path | None, file: str | None, title: str, failures: Iterable[str]) -> None:
    """Print failures as GitHub annotations of ``file``; print nothing if no file was named."""
    from md_export.report.ci import error_annotations

    for line in error_annotations(title, failures, file) if file else ():
        say(json_file, line)


def _takes_stdout(json_file: Path | None) -> bool:
    return str(json_file) == "-"


def _write_json(file: Path, result: Any) -> None:
    from pydantic import TypeAdapter

    # Serialize by the runtime types of the values: a verdict holds details of any engine.
    text = TypeAdapter(Any).dump_json(result, indent=2).decode()
    if _takes_stdout(file):
        click.echo(text)
    else:
        file.write_text(text + "\n", encoding="utf-8")


_SIZES: Final = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_AGES: Final = {"M": 60.0, "H": 3600.0, "D": 86400.0, "W": 7 * 86400.0}


def size(text: str) -> int:
    """Parse a size such as ``8G`` into bytes; raises click's BadParameter for anything else."""
    return _number(text, _SIZES, "B", "a size: write 8G or 500M")


def age(text: str) -> int:
    """Parse an age such as ``30d`` into seconds; raises click's BadParameter for anything else."""
    return _number(text, _AGES, "", "a time: write 30d, 12h or 2w")


def _number(text: str, units: Mapping[str, float], ending: str, wanted: str) -> int:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zA-Z]+)", text)
    unit = units.get(found[2].upper().removesuffix(ending)) if found else None
    if found is None or unit is None or not float(found[1]):
        raise click.BadParameter(f"{text!r:.40} is not {wanted}")
    return int(float(found[1]) * unit)


def cache_root(given: Path | None) -> Path:
    """Return the cache folder that was named, else the default one."""
    from md_export.engine.cache import default_root

    return given or default_root()


max_memory_option = click.option(
    "--max-memory", type=size, help="Memory of all steps that run at a time: 8G, 500M.  [default: 3/4 of the machine's]"
)
