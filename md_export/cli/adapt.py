"""The command that writes a checkpoint with LoRAs, or with an adapter, as a folder to keep."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, lora_option
from md_export.errors import UsageError


@click.command()
@click.argument("checkpoint", type=PATH)
@lora_option
@click.option("--adapter", type=PATH, help="Folder of a T2I-Adapter, as diffusers writes it: config.json and weights.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write; must not exist.")
def adapt(checkpoint: Path, loras: tuple[str, ...], adapter: Path | None, output: Path) -> None:
    """Write CHECKPOINT with LoRAs or an adapter as a folder of its own, a checkpoint for every command.

    It holds the added files and a relative path to CHECKPOINT, whose weights stay where they are.
    """
    if bool(loras) == (adapter is not None):
        raise UsageError(
            "name LoRAs with --lora FILE or --lora FILE:scale, or an --adapter FOLDER; for both, first the adapter, "
            "then LoRAs on the folder that this writes"
        )
    added = _add_loras(checkpoint, loras, output) if adapter is None else _add_adapter(checkpoint, adapter, output)
    click.echo(f"{output}: {checkpoint} with {added}")


def _add_loras(checkpoint: Path, loras: tuple[str, ...], output: Path) -> str:
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.lora.source import write_adapted
    from md_export.files import staging
    from md_export.loras import parse_loras

    with staging(output) as folder:
        write_adapted(folder, checkpoint, parse_loras(loras))
        adapted = open_checkpoint(folder)
        adapted.check()
        return f"{', '.join(map(str, adapted.loras))} in {' and '.join(adapted.adapted())}"


def _add_adapter(checkpoint: Path, adapter: Path, output: Path) -> str:
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.steered import write_steered
    from md_export.files import staging

    with staging(output) as folder:
        write_steered(folder, checkpoint, adapter)
        steered = open_checkpoint(folder)
        steered.check()
        kinds = {1: "a condition picture in one channel", 3: "a condition picture in colour"}
        return f"the adapter {adapter}, which takes {kinds[steered.config.adapter.in_channels]}"  # type: ignore[union-attr]
