"""Verdicts and comparisons of exports in the forms that CI systems read: Markdown, JUnit XML, GitHub annotations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from rich.table import Table

from md_export.diagnose.compare import ExportComparison
from md_export.parity.metrics import EXACT_DB
from md_export.parity.verdict import Verdict
from md_export.report.tables import Cells, drawn, markdown_row, safe
from md_export.report.verdicts import parity_cells


def markdown_page(results: Sequence[tuple[str, Verdict]]) -> str:
    """Return one heading and parity table for each (name, result), failed results first."""
    lines: list[str] = []
    for name, result in sorted(results, key=lambda item: item[1].passed):
        title = heading(name, result.passed, "verified", "falls short")
        lines += [title, "", *markdown_table(parity_cells(result)), ""]
    return "\n".join(lines)


def heading(name: str, passed: bool, good: str, bad: str) -> str:
    """Return a Markdown heading that ends with the verdict."""
    return f"### {safe(name)}: {good if passed else f'**{bad}**'}"


def markdown_table(cells: Cells) -> Iterator[str]:
    """Yield the lines of a Markdown table, with figures aligned to the right."""
    yield f"| {' | '.join(cells.head)} |"
    yield "|---" + "|---:" * (len(cells.head) - 1) + "|"
    for row in cells.rows:
        yield markdown_row(row)


# Characters that XML 1.0 cannot represent.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Suite:
    """A JUnit test suite: (name, faults) of each case."""

    name: str
    classname: str
    cases: tuple[tuple[str, tuple[str, ...]], ...]


def junit_xml(results: Sequence[tuple[str, Verdict]]) -> str:
    """Return JUnit XML with one suite for each (name, result), one case per component and one for the picture."""
    return junit_of([_suite(name, result) for name, result in results])


def junit_of(suites: Sequence[Suite]) -> str:
    """Return the XML file of the suites, valid in the junit-10 schema of Jenkins' xUnit plugin."""
    root = Element("testsuites")
    for suite in suites:
        failures = sum(bool(faults) for _, faults in suite.cases)
        counts = {"tests": str(len(suite.cases)), "failures": str(failures), "errors": "0"}
        element = SubElement(root, "testsuite", {"name": _text(suite.name), **counts})
        for name, faults in suite.cases:
            case = SubElement(element, "testcase", classname=_text(suite.classname), name=name)
            if faults:
                SubElement(case, "failure", message=_text(faults[0])).text = _text("\n".join(faults))
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _suite(name: str, result: Verdict) -> Suite:
    cases = [(item.component, item.faults) for item in result.components]
    if result.picture:
        cases.append(("picture", result.picture.faults))
    return Suite(name, f"{name}.{result.recipe}", tuple(cases))


def _text(value: str) -> str:
    return _UNWRITABLE.sub("�", value)


# Escapes for characters that end a command or one of its properties; the percent sign comes first, because the other
# escapes start with it.
_DATA: Final = (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"))
_PROPERTY: Final = (*_DATA, (":", "%3A"), (",", "%2C"))


def error_annotations(title: str, failures: Iterable[str], file: str) -> Iterator[str]:
    """Yield one ``::error`` line for each failure, shown at ``file``, a path from the root of the repository."""
    for failure in failures:
        where = f"file={_escaped(file, _PROPERTY)},title={_escaped(title, _PROPERTY)}"
        yield f"::error {where}::{_escaped(failure, _DATA)}"


def _escaped(text: str, table: Iterable[tuple[str, str]]) -> str:
    for character, code in table:
        text = text.replace(character, code)
    return text


def comparison_tables(result: ExportComparison) -> Iterator[Table | str]:
    """Yield the figures with their budgets, the changed counts, and remarks on the pictures."""
    yield drawn(_title(result), *change_cells(result))
    if result.recounts:
        yield drawn("what changed inside", *recount_cells(result))
    yield from _remarks(result)


def comparison_markdown(result: ExportComparison) -> str:
    """Return the comparison as Markdown for a pull request's comment, with the changed counts folded."""
    return "\n".join(_markdown(result))


def comparison_junit(result: ExportComparison) -> str:
    """Return JUnit XML with one case per figure, and one for the new export's verification."""
    cases = [(f"{item.component}: {item.figure}", (item.fault,) if item.fault else ()) for item in result.changes]
    return junit_of([Suite("regression", f"compare.{result.new}", (("verification", result.faults), *cases))])


def change_cells(result: ExportComparison) -> Cells:
    """Return one row per figure."""
    head = ("component", "figure", "old", "new", "change", "budget", "verdict")
    changed = ((item, "ok" if item.within else "FAIL") for item in result.changes)
    return Cells(head, tuple((item.component, item.figure, *item.spelled, verdict) for item, verdict in changed))


def recount_cells(result: ExportComparison) -> Cells:
    """Return one row for each stored type, kind of operation or rule with a changed count."""
    rows = ((one.component, one.what, one.kind, f"{one.old:,}", f"{one.new:,}") for one in result.recounts)
    return Cells(("component", "what", "kind", "old", "new"), tuple(rows))


def _title(result: ExportComparison) -> str:
    recipes = result.new if result.old == result.new else f"{result.old} → {result.new}"
    return f"{result.target}, {recipes}: new against old"


def _remarks(result: ExportComparison) -> Iterator[str]:
    if result.picture_psnr_db is not None:
        exact = result.picture_psnr_db >= EXACT_DB
        figure = "the same bit for bit, all" if exact else f"{result.picture_psnr_db:.1f} dB PSNR, the worst"
        yield f"pictures, new against old: {figure} of {result.pictures}"
    if not result.same_checkpoint:
        yield "the checkpoint changed: each export is judged on its own golden cases"
    yield from (f"NEW does not pass verification: {fault}" for fault in result.faults)


def _markdown(result: ExportComparison) -> Iterator[str]:
    yield heading(_title(result), not result.failures, "within the budget", "past the budget")
    yield ""
    yield from markdown_table(change_cells(result))
    yield ""
    for line in _remarks(result):
        yield f"- {safe(line)}"
    if result.recounts:
        yield ""
        yield "<details><summary>What changed inside</summary>"
        yield ""
        yield from markdown_table(recount_cells(result))
        yield ""
        yield "</details>"
    yield ""
