"""Commands that join Core ML exports of several sizes into packages that share weights, and take one out again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from md_export.cli.shared import PATH, conclude, json_option, output_option, progress, say, show
from md_export.errors import UsageError


@click.command()
@click.argument("exports", type=PATH, nargs=-1, required=True)
@output_option
@json_option
def join(exports: tuple[Path, ...], output: Path, json_file: Path | None) -> None:
    """Join Core ML EXPORTS of one checkpoint in several sizes: one package per component, one function per size.

    Weights are stored once. The function of the first export is the default. Each function is verified on golden cases
    of its size. Needs iOS 18.
    """
    from md_export.engine.join import join as join_exports
    from md_export.report.progress import shared_table
    from md_export.report.verdicts import parity_table

    with progress(5 * len(exports)) as report:
        shared, results = join_exports(exports, output, report)
    show(json_file, shared, shared_table(shared), *map(parity_table, results))
    say(json_file, f"{output}: verified")


@click.command()
@click.argument("joined", type=PATH)
@click.argument("function", required=False)
@click.option("-o", "--output", type=PATH, help="Folder to write; must not exist.")
def split(joined: Path, function: str | None, output: Path | None) -> None:
    """Write one FUNCTION of a JOINED export as a separate export; without FUNCTION, list them."""
    from md_export.engine.join import read_functions
    from md_export.engine.join import split as take_out

    if function is None:
        click.echo("\n".join(read_functions(joined)))
        return
    if output is None:
        raise UsageError("name a folder to write with -o")
    manifest = take_out(joined, function, output)
    click.echo(f"{output}: {manifest.recipe.name}")


def verify_joined(out: Path, flags: Mapping[str, object], json_file: Path | None) -> None:
    """Verify a joined export; ``flags``: options that it does not take, by name."""
    from md_export.engine.join import verify_functions
    from md_export.report.verdicts import parity_table

    if given := [name for name, value in flags.items() if value]:
        raise UsageError(f"{given[0]} is for one export; take it out first: md-export split {out} FUNCTION -o DIR")
    with progress(8) as report:
        results = verify_functions(out, report)
    failures = [f"{name}: {fault}" for name, result in results.items() for fault in result.failures]
    tables = map(parity_table, results.values())
    conclude(json_file, results, failures, tables, f"{out}: {', '.join(results)} verified")
