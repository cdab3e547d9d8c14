"""Commands that check exports and write the findings: audit, compare, report, manifest."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import click

from md_export.cli import options, shared
from md_export.cli.artifacts import gpu_limit
from md_export.cli.paths import CHECKPOINT, EXISTING, EXPORT, FILE
from md_export.errors import ArtifactError, ParityError, PinError, RegressionError, UsageError
from md_export.spec.names import COMPONENT_NAMES


@click.command()
@click.argument("out", type=EXPORT)
@options.checkpoint_option
@options.used_lora_option
@options.json_option
def audit(out: Path, checkpoint: Path | None, loras: tuple[str, ...], json_file: Path | None) -> None:
    """Compare every stored weight of an export with its checkpoint.

    Example: md-export audit ios --checkpoint path/to/checkpoint

    Torch computes the golden cases once more; tokenizer, constants and metadata are derived again. Exit 3 if one of
    them differs, or if a weight differs by more than its scheme rounds, is missing, or is stored in another type than
    requested.
    """
    from md_export.engine.against_checkpoint import audit as audit_against
    from md_export.report.diagnoses import audit_table, unmatched_table

    with shared.progress(len(COMPONENT_NAMES)) as report:
        result = audit_against(out, shared.checkpoint_or_nano(checkpoint), report, loras)
    tables = audit_table(result), unmatched_table(result)
    shared.conclude(
        json_file, result, result.failures, tables, f"{out}: every weight, golden case and file is the checkpoint's"
    )


@click.command()
@click.argument("old", type=EXPORT)
@click.argument("new", type=EXPORT)
@options.gpu_option
@options.limit_option
@options.junit_option
@options.markdown_option
@options.annotate_option
@options.json_option
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
    """Compare two exports of one target, OLD and NEW.

    Example: md-export compare old/ios new/ios --markdown comment.md

    Both run. Parity, bytes, operations, stored types, lint findings and pictures are compared; with --gpu, also the
    operations that LiteRT's GPU engine leaves to the CPU. Exit 3 if NEW is worse by more than the [regression] table of
    its recipe allows, or misses a threshold of its recipe.
    """
    from md_export.diagnose.compare import compare_exports
    from md_export.report.ci import comparison_junit, comparison_markdown, comparison_tables
    from md_export.spec.manifest import read_manifest

    limit = gpu_limit(gpu, limit_s, read_manifest(new).target)
    with shared.progress(2 * len(COMPONENT_NAMES)) as tell:
        result = compare_exports(old, new, limit if gpu else None, tell)
    if junit:
        junit.write_text(comparison_junit(result), encoding="utf-8")
    if markdown:
        markdown.write_text(comparison_markdown(result), encoding="utf-8")
    shared.show(json_file, result, *comparison_tables(result))
    shared.say_annotations(json_file, annotate, "md-export compare", result.failures)
    if result.failures:
        raise RegressionError("; ".join(result.failures))
    shared.say(json_file, f"{new}: within the budget of {result.new}")


@click.command()
@click.argument("outs", metavar="OUT...", type=EXPORT, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, help="Write one .html page to this file; it opens without a network.")
@options.junit_option
@options.markdown_option
@options.annotate_option
@click.option(
    "--checkpoint", type=CHECKPOINT, help="Add errors of each module and weight, against this checkpoint of OUT."
)
@options.json_option
def report(
    outs: tuple[Path, ...],
    output: Path | None,
    junit: Path | None,
    markdown: Path | None,
    annotate: str | None,
    checkpoint: Path | None,
    json_file: Path | None,
) -> None:
    """Verify exports and write an HTML page, JUnit or Markdown.

    Example: md-export report ios android -o report.html

    Exit 3 if an export misses a threshold of its recipe, like verify.
    """
    from md_export.parity.judge import judge
    from md_export.report.ci import junit_xml, markdown_page
    from md_export.report.verdicts import parity_table

    if not (output or junit or markdown or json_file):
        raise UsageError("nothing to write; name a file with -o, --junit, --markdown or --json")
    if checkpoint and not output:
        raise UsageError("--checkpoint adds to the HTML page; name the page with -o, or leave out --checkpoint")
    if output:
        shared.require_report()
    with shared.progress(len(COMPONENT_NAMES) * len(outs)) as tell:
        exports = [(out.resolve().name, judge(out, progress=tell)) for out in outs]
    results = [(name, verification.result) for name, verification in exports]
    if output:
        from md_export.diagnose.insight import look_inside
        from md_export.report.page import html_page

        with shared.progress(7 * len(outs)) as tell:
            insights = [look_inside(out, checkpoint, tell) for out in outs]
        chapters = [(*export, insight) for export, insight in zip(exports, insights, strict=True)]
        page = html_page(chapters, date.today())
        output.write_text(page, encoding="utf-8")
    if junit:
        junit.write_text(junit_xml(results), encoding="utf-8")
    if markdown:
        markdown.write_text(markdown_page(results), encoding="utf-8")
    shared.show(json_file, [result for _, result in results], *(parity_table(result) for _, result in results))
    failures = [f"{name}: {failure}" for name, result in results for failure in result.failures]
    shared.say_annotations(json_file, annotate, "md-export report", failures)
    if failures:
        raise ParityError("; ".join(failures))


@click.group()
def manifest() -> None:
    """Check the files of an export by their hashes, and pin them.

    Example: md-export manifest check ios
    """


@manifest.command()
@click.argument("out", type=EXISTING)
@options.pin_option
@options.allowed_signers_option
@options.json_option
def check(out: Path, pin_file: Path | None, allowed_signers: Path | None, json_file: Path | None) -> None:
    """Compare every file of OUT with the hash in its manifest.

    Example: md-export manifest check ios --pin ios.pin.json

    OUT is an export or a folder of exports. Needs no runtime and no network; only a joined export needs coremltools,
    to take out its functions one by one. Exit 1 if a file differs. With --pin, one export is also compared with the
    pin; exit 3 if it differs.
    """
    from md_export.spec.given import JOIN, MANIFEST
    from md_export.spec.manifest import check_exports

    if pin_file and not (out / MANIFEST).is_file():
        raise UsageError(f"--pin needs one export, and {out} is not an export; name the export, or leave out --pin")
    pin = shared.pinned(pin_file, allowed_signers)
    if (out / JOIN).is_file():
        from md_export.engine.join import check_functions

        found = check_functions(out)
    else:
        found = check_exports(out)
    shared.show(json_file, found)
    for one in found:
        shared.say(json_file, f"{one.folder}: {one.files} files checked, {len(one.differences)} differ")
        for name in one.unlisted:
            shared.say(json_file, f"{one.folder}: {name} is not in the manifest")
    wrong = [f"{one.folder}: {text}" for one in found for text in one.differences]
    if wrong:
        raise ArtifactError("; ".join(wrong))
    if pin:
        from md_export.parity.pin import pin_findings

        if lines := [f"{one.component}: {one.text}".removeprefix(": ") for one in pin_findings(out, pin)]:
            raise PinError(f"{out} is not what {pin_file} says: {'; '.join(lines)}")


@manifest.command()
@click.argument("out", type=EXPORT)
@click.option("-o", "--output", type=FILE, help="Write the pin to this file.  [default: print it]")
@click.option("--promise", is_flag=True, help="Pin only what every rebuild keeps: recipe, thresholds, golden cases.")
@click.option("--sign", "key", type=EXISTING, help="Sign the pin with this OpenSSH key; writes FILE.sig beside it.")
def seal(out: Path, output: Path | None, promise: bool, key: Path | None) -> None:
    """Pin an export, for --pin of verify and manifest check.

    Example: md-export manifest seal ios -o ios.pin.json

    The pin covers the manifest (recipe with thresholds, figures, hashes of all files) and the golden cases, but not
    measured seconds and memory. A pin with --promise suits every rebuild; without, only this export.
    """
    from md_export.parity.pin import pin_bytes
    from md_export.parity.pin import seal as pin_of
    from md_export.system.signature import sign, signature_path

    if key and output is None:
        raise UsageError("--sign writes a signature beside the pin's file; name the file with -o")
    pin = pin_of(out, promise)
    content = pin_bytes(pin)
    if output is None:
        click.echo(content, nl=False)
        return
    signature = sign(content, key) if key else None
    output.write_bytes(content)
    if signature:
        signature_path(output).write_bytes(signature)
    shared.say(None, f"{output}: {pin.sha256}, covers {pin}" + (f"; signed with {key}" if key else ""))
