"""The command that holds an export against an older one."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.artifacts import gpu_limit, gpu_option, limit_option
from md_export.cli.shared import PATH, annotate_option, json_option, progress, say, say_annotations, show
from md_export.names import COMPONENT_NAMES


@click.command()
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@gpu_option
@limit_option
@click.option("--junit", type=PATH, help="Also write JUnit XML, for a CI system.")
@click.option("--markdown", type=PATH, help="Also write Markdown, for a pull request's comment.")
@annotate_option
@json_option
def compare(
    old: Path,
    new: Path,
    gpu: bool,
    limit_s: float | None,
    junit: Path | None,
    markdown: Path | None,
    annotate: str | None,
    json_file: Path | None,
) -> None:
    """Run two exports of one target and hold NEW against OLD: parity, bytes, operations, stored types, lint, pictures.

    Exit 3 if NEW is worse by more than the [regression] table of its recipe allows, or falls short by itself.
    With --gpu, for TFLite: operations left to the CPU too.
    """
    from md_export.errors import RegressionError
    from md_export.manifest import read_manifest
    from md_export.parity.regression.compare import compare_exports
    from md_export.report.compare import comparison_junit, comparison_markdown, comparison_tables

    limit = gpu_limit(gpu, limit_s, read_manifest(new).target)
    with progress(2 * len(COMPONENT_NAMES)) as tell:
        result = compare_exports(old, new, limit if gpu else None, tell)
    if junit:
        junit.write_text(comparison_junit(result), encoding="utf-8")
    if markdown:
        markdown.write_text(comparison_markdown(result), encoding="utf-8")
    show(json_file, result, *comparison_tables(result))
    say_annotations(json_file, annotate, "md-export compare", result.failures)
    if result.failures:
        raise RegressionError("; ".join(result.failures))
    say(json_file, f"{new}: within the budget of {result.new}")
