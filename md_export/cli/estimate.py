"""The command estimate: how long an export might take on a phone."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, json_option, progress, show
from md_export.names import COMPONENT_NAMES


@click.command()
@click.argument("out", type=PATH)
@click.option("--device", required=True, help="A phone: iphone15pro, galaxy-s24, …; any other name lists them all.")
@json_option
def estimate(out: Path, device: str, json_file: Path | None) -> None:
    """Estimate how long each artifact of an export might take on a phone, and rank what to change for speed.

    A roofline of the lowered graphs, fitted to latencies that others published; printed with the fit's error and
    beside the physical floor. No phone is asked, and nothing is run.
    """
    from md_export.estimate.command import estimate as judge
    from md_export.report.estimate import estimate_tables

    with progress(len(COMPONENT_NAMES)) as tell:
        found = judge(out, device, tell)
    show(json_file, found, *estimate_tables(found))
