"""Commands that check an export without running it on golden cases again: audit, compare, manifest."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.artifacts import gpu_limit, gpu_option, limit_option
from md_export.cli.shared import (
    PATH,
    annotate_option,
    checkpoint_or_nano,
    conclude,
    json_option,
    lora_option,
    progress,
    say,
    say_annotations,
    show,
)
from md_export.errors import ArtifactError
from md_export.spec.names import COMPONENT_NAMES


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
    from md_export.parity.weights.audit import audit as hold
    from md_export.report.diagnoses import audit_table, unmatched_table

    with adapted(checkpoint_or_nano(checkpoint), loras) as folder, progress(len(COMPONENT_NAMES)) as report:
        result = hold(out, folder, report)
    tables = (audit_table(result), unmatched_table(result))
    conclude(json_file, result, result.failures, tables, f"{out}: every weight is the checkpoint's")


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
    from md_export.diagnose.compare import compare_exports
    from md_export.errors import RegressionError
    from md_export.report.compare import comparison_junit, comparison_markdown, comparison_tables
    from md_export.spec.manifest import read_manifest

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


@click.group()
def manifest() -> None:
    """Look at what exports say of themselves."""


@manifest.command()
@click.argument("out", type=PATH)
@json_option
def check(out: Path, json_file: Path | None) -> None:
    """Hold every file of an export, or of a folder of exports, against the hash in its manifest; exit 1 if one differs.

    Needs no runtime and no network; the functions of a joined export are taken out one by one, by coremltools.
    """
    from md_export.engine.join import check_functions
    from md_export.parity.manifest_check import check_exports
    from md_export.spec.manifest import JOIN

    found = check_functions(out) if (out / JOIN).is_file() else check_exports(out)
    show(json_file, found)
    for one in found:
        say(json_file, f"{one.folder}: {one.files} files checked, {len(one.differences)} differ")
        for name in one.unlisted:
            say(json_file, f"{one.folder}: {name} is not in the manifest")
    wrong = [f"{one.folder}: {text}" for one in found for text in one.differences]
    if wrong:
        raise ArtifactError("; ".join(wrong))
