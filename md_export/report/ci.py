"""Verdicts in the forms that CI systems read: Markdown, JUnit XML, GitHub annotations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from md_export.parity.verdict import Verdict
from md_export.report.tables import Cells
from md_export.report.verdicts import parity_cells


def markdown_page(results: Sequence[tuple[str, Verdict]]) -> str:
    """Return one heading and parity table for each (name, result), failed results first."""
    ordered = sorted(results, key=lambda item: item[1].passed)
    return "\n".join(line for name, result in ordered for line in _section(name, result))


def _section(name: str, result: Verdict) -> Iterator[str]:
    yield heading(name, result.passed, "verified", "falls short")
    yield ""
    yield from markdown_table(parity_cells(result))
    yield ""


def heading(name: str, passed: bool, good: str, bad: str) -> str:
    """Return a Markdown heading that ends with the verdict."""
    return f"### {safe(name)}: {good if passed else f'**{bad}**'}"


def markdown_table(cells: Cells) -> Iterator[str]:
    """Yield the lines of a Markdown table, with figures aligned to the right."""
    yield f"| {' | '.join(cells.head)} |"
    yield "|---" + "|---:" * (len(cells.head) - 1) + "|"
    for row in cells.rows:
        yield f"| {' | '.join(map(safe, row))} |"


def safe(text: str) -> str:
    """Escape text so that it ends no table cell, starts no HTML element and stays on one line."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


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


# Escapes for characters that end a command or one of its properties; the percent sign comes first, since the other
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
