"""Verdicts as JUnit XML, which continuous integration systems show test by test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from md_export.parity.verify import VerifyResult

# What XML 1.0 has no way to write.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Suite:
    """What was judged together: (name, faults) of each case."""

    name: str
    classname: str
    cases: tuple[tuple[str, tuple[str, ...]], ...]


def junit_xml(results: Sequence[tuple[str, VerifyResult]]) -> str:
    """One suite for each (name, result), one case per component and one for the picture."""
    return junit_of([_suite(name, result) for name, result in results])


def junit_of(suites: Sequence[Suite]) -> str:
    """The file, as the schema junit-10 of Jenkins' xUnit plugin wants it."""
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


def _suite(name: str, result: VerifyResult) -> Suite:
    cases = [(item.component, item.faults) for item in result.components]
    if result.picture:
        cases.append(("picture", result.picture.faults))
    return Suite(name, f"{name}.{result.recipe}", tuple(cases))


def _text(value: str) -> str:
    return _UNWRITABLE.sub("�", value)
