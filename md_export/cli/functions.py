"""Commands for several sizes or styles of one model: style, join, split."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli import options, shared
from md_export.cli.paths import EXPORT, JOINED, NEW
from md_export.errors import UsageError


@click.command()
@click.argument("exports", type=EXPORT, nargs=-1, required=True)
@options.output_option
@options.json_option
def join(exports: tuple[Path, ...], output: Path, json_file: Path | None) -> None:
    """Join Core ML EXPORTS of several picture sizes in one.

    Example: md-export join ios-512 ios-768 -o ios-sizes

    All EXPORTS come from one checkpoint. The result has one package per component with one function per size; weights
    are stored once. The function of the first export is the default. Each function is verified on golden cases of its
    size. Needs iOS 18.
    """
    from md_export.engine.join import join as join_exports
    from md_export.report.progress import shared_table
    from md_export.report.verdicts import parity_table

    with shared.progress(5 * len(exports)) as report:
        joined, results = join_exports(exports, output, report)
    shared.show(json_file, joined, shared_table(joined), *map(parity_table, results))
    shared.say(json_file, f"{output}: verified")


@click.command()
@click.argument("loras", metavar="FILE[:SCALE]...", nargs=-1, required=True)
@click.option("--for", "out", type=EXPORT, required=True, help="Make it for this export, which has inputs for styles.")
@options.checkpoint_option
@options.output_option
def style(loras: tuple[str, ...], out: Path, checkpoint: Path | None, output: Path) -> None:
    """Make a style from a LoRA, without exporting again.

    Example: md-export style crayon.safetensors --for android -o crayon

    The export has inputs for styles (--style). The folder has a .safetensors file for each component, with the values
    of the inputs lora_…, and for ONNX an .onnx_adapter file. Several LoRAs become one style.
    """
    from md_export.engine.style import make_style

    with shared.progress(1) as report:
        files = make_style(out, shared.checkpoint_or_nano(checkpoint), loras, output, report)
    for file in files:
        click.echo(f"{file}: {file.stat().st_size:,} bytes")


@click.command()
@click.argument("joined", type=JOINED)
@click.argument("function", required=False)
@click.option("-o", "--output", type=NEW, help="Write to this folder; must not exist.")
def split(joined: Path, function: str | None, output: Path | None) -> None:
    """Take one FUNCTION (size) out of a JOINED export.

    Example: md-export split ios-sizes size_768 -o ios-768

    Without FUNCTION, list the functions.
    """
    from md_export.engine.join import read_functions
    from md_export.engine.join import split as take_out

    if function is None:
        click.echo("\n".join(read_functions(joined)))
        return
    if output is None:
        raise UsageError("no output folder; name one with -o")
    manifest = take_out(joined, function, output)
    click.echo(f"{output}: {manifest.recipe.name}")
