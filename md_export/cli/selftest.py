"""The option of verify that tests the gate itself."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, progress, say, show
from md_export.errors import UsageError

self_test_option = click.option(
    "--self-test", is_flag=True, help="Damage copies of OUT in every known way: does the gate notice each?"
)
checkpoint_option = click.option(
    "--checkpoint", type=PATH, help="With --self-test: what OUT was exported from. Default: the nano one."
)


def check_self_test(self_test: bool, checkpoint: Path | None, others: dict[str, object]) -> None:
    """UsageError where ``--checkpoint`` stands alone, or one of ``others``, options by name, stands beside it."""
    if checkpoint and not self_test:
        raise UsageError("--checkpoint is for --self-test; leave it out")
    given = [name for name, value in others.items() if value]
    if self_test and given:
        raise UsageError(f"--self-test damages copies of OUT as they are; leave out {', '.join(given)}")


def run_self_test(out: Path, checkpoint: Path | None, json_file: Path | None) -> None:
    """Print the table; ParityError where a mutation was not noticed, or by accident."""
    from md_export.data import nano_checkpoint
    from md_export.errors import ParityError
    from md_export.parity.selftest.command import self_test
    from md_export.report.selftest import self_test_table

    with progress(1) as tell:
        result = self_test(out, checkpoint or nano_checkpoint(), tell)
    show(json_file, result, self_test_table(result))
    if result.failures:
        raise ParityError("; ".join(result.failures))
    say(json_file, f"{out}: the gate noticed everything")
