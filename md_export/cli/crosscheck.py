"""The command crosscheck: one component in two runtimes, and single operations."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, checkpoint_or_nano, json_option, progress, show
from md_export.errors import UsageError


@click.command()
@click.argument("artifacts", type=PATH, nargs=-1)
@click.option("--checkpoint", type=PATH, help="That both were exported from.  [default: the nano one that ships]")
@click.option("--ops", is_flag=True, help="No artifacts: a corpus of operations in float16, Core ML and Core AI.")
@json_option
def crosscheck(artifacts: tuple[Path, ...], checkpoint: Path | None, ops: bool, json_file: Path | None) -> None:
    """Run two ARTIFACTS of one component, files of two exports, each in its own runtime on the same golden inputs.

    Names the modules that one computes worse than the other by more than rounding explains. Advice is no failure:
    exit 0.
    """
    if ops and (artifacts or checkpoint):
        raise UsageError("--ops makes artifacts of its own; leave out yours and --checkpoint")
    if not ops and len(artifacts) != len(("A", "B")):
        raise UsageError("name two artifacts of one component, such as ios/unet.mlpackage ios27/unet.aimodel, or --ops")
    if ops:
        _operations(json_file)
    else:
        _artifacts(artifacts, checkpoint, json_file)


def _artifacts(artifacts: tuple[Path, ...], checkpoint: Path | None, json_file: Path | None) -> None:
    from md_export.crosscheck.artifacts import crosscheck as hold
    from md_export.report.crosscheck import crosscheck_tables

    first, second = artifacts
    with progress(1) as tell:
        found = hold(first, second, checkpoint_or_nano(checkpoint), tell)
    show(json_file, found, *crosscheck_tables(found))


def _operations(json_file: Path | None) -> None:
    from md_export.crosscheck.operations import crosscheck_operations
    from md_export.report.crosscheck import operation_table

    with progress(1) as tell:
        found = crosscheck_operations(tell)
    show(json_file, found, operation_table(found))
