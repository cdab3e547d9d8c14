"""Verdicts as JUnit XML, which continuous integration systems show test by test."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from md_export.parity.verify import VerifyResult

# What XML 1.0 has no way to write.
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(results: Sequence[tuple[str, VerifyResult]]) -> str:
    """One suite for each (name, result), one case per component and one for the picture."""
    root = Element("testsuites")
    for name, result in results:
        cases = [(item.component, item.faults) for item in result.components]
        if result.picture:
            cases.append(("picture", result.picture.faults))
        failures = sum(bool(faults) for _, faults in cases)
        suite = SubElement(root, "testsuite", name=_text(name), tests=str(len(cases)), failures=str(failures))
        for component, faults in cases:
            case = SubElement(suite, "testcase", classname=_text(f"{name}.{result.recipe}"), name=component)
            if faults:
                SubElement(case, "failure", message=_text(faults[0])).text = _text("\n".join(faults))
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _text(value: str) -> str:
    return _UNWRITABLE.sub("�", value)
