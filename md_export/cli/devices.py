"""Commands that test exports on real devices: device-test, device-report."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli import options, shared
from md_export.cli.paths import EXISTING, EXPORT
from md_export.spec.names import COMPONENT_NAMES


@click.command("device-test")
@click.argument("out", type=EXPORT)
@options.output_option
@click.option("--cases", type=click.IntRange(min=1), help="Write only this many golden cases.  [default: all]")
def device_test(out: Path, output: Path, cases: int | None) -> None:
    """Write a kit that tests an export on a phone.

    Example: md-export device-test android -o kit

    The kit holds the files of the TFLite, ONNX or Core ML export OUT, golden tensors, programs and a README. Its
    program writes a folder of results for device-report.
    """
    from md_export.parity.device.kit import write_kit

    with shared.progress(len(COMPONENT_NAMES)) as report:
        kit = write_kit(out, output, cases, report)
    shared.say(
        None, f"{output}: {kit.recipe}, {kit.golden_cases} golden cases; {output / 'README.md'} has the next steps"
    )


@click.command("device-report")
@click.argument("out", type=EXPORT)
@click.argument("results", type=EXISTING)
@click.option("--row", is_flag=True, help="Print a row for docs/devices.md instead of the table.")
@options.json_option
def device_report(out: Path, results: Path, row: bool, json_file: Path | None) -> None:
    """Judge the RESULTS of a device kit by the recipe of OUT.

    Example: md-export device-report android kit/results

    Exit 3 if a figure misses a threshold or an artifact did not run; exit 2 if RESULTS are incomplete or come from
    another export.
    """
    from md_export.parity.device.results import judge_results
    from md_export.report.verdicts import device_row, device_table

    found = judge_results(out, results)
    failures, passed = found.verdict.failures, f"{out}: right on {found.device.device}, {found.extent} golden cases"
    shared.conclude(json_file, found, failures, [device_row(found) if row else device_table(found)], passed)
