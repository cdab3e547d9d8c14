"""Markdown and JUnit from the same verdicts."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

from md_export.parity.verdict import Verdict
from md_export.report.ci import junit_xml, markdown_page
from support import Judged


def _passing(result: Verdict) -> Verdict:
    return dataclasses.replace(result, components=tuple(dataclasses.replace(x, faults=()) for x in result.components))


def test_markdown_puts_what_falls_short_first(judged: Judged) -> None:
    result = judged[1].result
    text = markdown_page([("good", _passing(result)), ("bad", result)])
    assert text.index("### bad: **falls short**") < text.index("### good: verified")
    assert "| unet | 12.5 | 20 | 50.0 | 0.999000 | 1.00e-02 | FAIL: snr 12.5 dB is below the recipe's 20 dB |" in text


def test_markdown_is_not_broken_by_names(judged: Judged) -> None:
    text = markdown_page([("a|b<img>", judged[1].result)])
    assert "a\\|b&lt;img>" in text


# Of junit-10.xsd in Jenkins' xUnit plugin: attributes that an element must have, those that it may have, its children.
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"group", "time", "skipped", "timestamp"}, {"testcase"}),
    "testcase": ({"name"}, {"classname", "time", "group"}, {"failure", "error", "skipped"}),
    "failure": (set(), {"type", "message"}, set()),
}


def misfits(element: ElementTree.Element) -> list[str]:
    required, optional, children = SCHEMA[element.tag]
    given = set(element.attrib)
    wrong = [f"{element.tag} lacks {name}" for name in required - given]
    wrong += [f"{element.tag} has {name}" for name in given - required - optional]
    wrong += [f"{element.tag} holds {child.tag}" for child in element if child.tag not in children]
    return wrong + [line for child in element if child.tag in SCHEMA for line in misfits(child)]


def test_junit_fits_the_schema_of_jenkins(judged: Judged) -> None:
    root = ElementTree.fromstring(junit_xml([("my-export", judged[1].result)]))  # noqa: S314
    assert misfits(root) == []
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures")) == (str(len(suite)), str(len(list(suite.iter("failure")))))
    del root[0].attrib["errors"]
    root[0].set("color", "red")
    ElementTree.SubElement(root[0][0], "testsuite")
    assert misfits(root)[:3] == ["testsuite lacks errors", "testsuite has color", "testcase holds testsuite"]


def test_junit_has_a_case_per_component_and_the_fault_in_its_failure(judged: Judged) -> None:
    result = judged[1].result
    root = ElementTree.fromstring(junit_xml([("x\x00y", result), ("good", _passing(result))]))  # noqa: S314
    bad, good = root
    assert (bad.get("tests"), bad.get("failures"), good.get("failures")) == ("4", "1", "0")
    assert [case.get("name") for case in bad] == ["text_encoder", "unet", "vae_decoder", "picture"]
    (failure,) = root.iter("failure")
    assert failure.get("message") == "snr 12.5 dB is below the recipe's 20 dB"
