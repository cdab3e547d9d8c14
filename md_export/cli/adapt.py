"""The command that writes a checkpoint with LoRAs, an adapter or a ControlNet as a folder to keep."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, lora_option
from md_export.errors import UsageError
from md_export.names import ADAPTER, CONTROLNET


@click.command()
@click.argument("checkpoint", type=PATH)
@lora_option
@click.option("--adapter", type=PATH, help="Folder of a T2I-Adapter, as diffusers writes it: config.json and weights.")
@click.option("--controlnet", type=PATH, help="Folder of a ControlNet, with diffusers' names: config.json and weights.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write; must not exist.")
def adapt(
    checkpoint: Path, loras: tuple[str, ...], adapter: Path | None, controlnet: Path | None, output: Path
) -> None:
    """Write CHECKPOINT with LoRAs, an adapter or a ControlNet as a folder of its own, a checkpoint for every command.

    It holds the added files and a relative path to CHECKPOINT, whose weights stay where they are.
    """
    given = {name: folder for name, folder in ((ADAPTER, adapter), (CONTROLNET, controlnet)) if folder is not None}
    if len(given) + bool(loras) != 1:
        raise UsageError(
            "name LoRAs with --lora FILE or --lora FILE:scale, an --adapter FOLDER, or a --controlnet FOLDER; for "
            "LoRAs and one of the others, first the other, then LoRAs on the folder that this writes"
        )
    if loras:
        added = _add_loras(checkpoint, loras, output)
    else:
        ((component, folder),) = given.items()
        added = _add_steering(checkpoint, component, folder, output)
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


def _add_steering(checkpoint: Path, component: str, given: Path, output: Path) -> str:
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.steered import write_steered
    from md_export.files import staging

    with staging(output) as folder:
        write_steered(folder, checkpoint, given, component)
        steered = open_checkpoint(folder)
        steered.check()
        shape = steered.config.condition_shape
        takes = "a condition picture in colour" if shape and shape[1] == 3 else "a condition picture in one channel"
        return f"the {component} in {given}, which takes {takes}"
