"""The command that makes a checkpoint folder of a single file."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH


@click.command()
@click.argument("file", type=PATH)
@click.option("--tokenizer", type=PATH, required=True, help="Folder with CLIP's vocab.json and merges.txt.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write; must not exist.")
def unpack(file: Path, tokenizer: Path, output: Path) -> None:
    """Write FILE, a single .safetensors of Stable Diffusion 1, as a checkpoint folder for every command."""
    from md_export.unpack import unpack as write

    write(file, tokenizer, output)
    click.echo(f"{output}: {file} in diffusers' layout")
