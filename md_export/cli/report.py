"""The command that writes what was found: as a page, and in the forms that CI systems read."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, annotate_option, json_option, progress, say_annotations, show
from md_export.errors import UsageError
from md_export.spec.names import COMPONENT_NAMES


@click.command()
@click.argument("outs", metavar="OUT...", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, help="The .html file to write.")
@click.option("--junit", type=PATH, help="Also write JUnit XML, for a CI system.")
@click.option("--markdown", type=PATH, help="Also write Markdown, for a pull request's comment.")
@annotate_option
@click.option("--checkpoint", type=PATH, help="What OUT was made from: the page explains each module and weight then.")
@json_option
def report(
    outs: tuple[Path, ...],
    output: Path | None,
    junit: Path | None,
    markdown: Path | None,
    annotate: str | None,
    checkpoint: Path | None,
    json_file: Path | None,
) -> None:
    """Verify exports and write what was found as one page that opens without a network; exit 3 as verify does."""
    from md_export.errors import ParityError
    from md_export.parity.judge import judge
    from md_export.report.verdicts import parity_table

    if not (output or junit or markdown or json_file):
        raise UsageError("say what to write: -o report.html, --junit, --markdown or --json")
    if checkpoint and not output:
        raise UsageError("--checkpoint is for the page; name it with -o, or leave it out")
    with progress(len(COMPONENT_NAMES) * len(outs)) as tell:
        exports = [(out.resolve().name, judge(out, progress=tell)) for out in outs]
    results = [(name, verification.result) for name, verification in exports]
    if output:
        from md_export.diagnose.insight import look_inside
        from md_export.report.page import html_page

        with progress(7 * len(outs)) as tell:
            insights = [look_inside(out, checkpoint, tell) for out in outs]
        page = html_page([(*export, insight) for export, insight in zip(exports, insights, strict=True)])
        output.write_text(page, encoding="utf-8")
    if junit:
        from md_export.report.ci import junit_xml

        junit.write_text(junit_xml(results), encoding="utf-8")
    if markdown:
        from md_export.report.ci import markdown_page

        markdown.write_text(markdown_page(results), encoding="utf-8")
    show(json_file, [result for _, result in results], *(parity_table(result) for _, result in results))
    failures = [f"{name}: {failure}" for name, result in results for failure in result.failures]
    say_annotations(json_file, annotate, "md-export report", failures)
    if failures:
        raise ParityError("; ".join(failures))
