"""The command that reads every weight of an export back and holds it against the checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, checkpoint_or_nano, json_option, lora_option, progress, say, show
from md_export.names import COMPONENT_NAMES


@click.command()
@click.argument("out", type=PATH)
@click.argument("checkpoint", type=PATH, required=False)
@lora_option
@json_option
def audit(out: Path, checkpoint: Path | None, loras: tuple[str, ...], json_file: Path | None) -> None:
    """Decode every weight that an export stores and compare it with CHECKPOINT, the nano one by default.

    Exit 3 if a weight is further off than its scheme rounds, is nowhere, or is stored otherwise than requested.
    """
    from md_export.checkpoint.lora.source import adapted
    from md_export.errors import ParityError
    from md_export.parity.stored.audit import audit as hold
    from md_export.report.audit import audit_table, unmatched_table

    with adapted(checkpoint_or_nano(checkpoint), loras) as folder, progress(len(COMPONENT_NAMES)) as report:
        result = hold(out, folder, report)
    show(json_file, result, audit_table(result), unmatched_table(result))
    if not result.passed:
        raise ParityError("; ".join(result.failures))
    say(json_file, f"{out}: every weight is the checkpoint's")
