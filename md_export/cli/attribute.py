"""The command attribute: which torch module an artifact computes wrongly."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, checkpoint_or_nano, json_option, progress, show


@click.command()
@click.argument("artifact", type=PATH)
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--hops", "lower_again", is_flag=True, help="Also convert to float32 once more: is it the lowering?")
@json_option
def attribute(artifact: Path, checkpoint: Path | None, lower_again: bool, json_file: Path | None) -> None:
    """Follow ARTIFACT, a file of an export, module by module beside torch, in the golden case in which it is worst.

    Names the hop and the first module that diverge, the ten worst, and what to change in the recipe. CHECKPOINT is
    the one that the export was made from; by default the nano one. Advice is no failure: exit 0.
    """
    from md_export.parity.modules.attribute import attribute as follow
    from md_export.report.attribute import attribution_tables

    with progress(2) as tell:
        found = follow(artifact, checkpoint_or_nano(checkpoint), tell, lower_again)
    show(json_file, found, *attribution_tables(found))
