"""The command that writes a checkpoint with LoRAs as a folder to keep."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, lora_option


@click.command()
@click.argument("checkpoint", type=PATH)
@lora_option
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write; must not exist.")
def adapt(checkpoint: Path, loras: tuple[str, ...], output: Path) -> None:
    """Write CHECKPOINT with LoRAs as a folder of its own, a checkpoint for every command.

    It holds the LoRA files and a relative path to CHECKPOINT, whose weights stay where they are.
    """
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.lora.source import write_adapted
    from md_export.errors import UsageError
    from md_export.files import staging
    from md_export.loras import parse_loras

    if not loras:
        raise UsageError("name at least one LoRA with --lora FILE or --lora FILE:scale")
    with staging(output) as folder:
        write_adapted(folder, checkpoint, parse_loras(loras))
        adapted = open_checkpoint(folder)
        adapted.check()
        changed = " and ".join(adapted.adapted())
    click.echo(f"{output}: {checkpoint} with {', '.join(map(str, adapted.loras))} in {changed}")
