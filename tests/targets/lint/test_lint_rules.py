"""The rule files of all targets: what they must say, and how a wrong one is named."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from md_export.errors import ArtifactError
from md_export.rewrites import REWRITES
from md_export.targets.lint.judge import CONDITIONS, LIMITS, known_faults
from md_export.targets.lint.report import Limits
from md_export.targets.lint.rules import FAULT_TARGETS, When, faults_of, load_rules, rule_path, rules_of
from md_export.targets.operations import Op, Value

RULE_FILE = rule_path("coreml")
TARGETS = ("coreml", "coreai", "tflite")


def test_every_condition_has_a_meaning() -> None:
    assert {field.name for field in fields(When)} == {*CONDITIONS, "weight_bytes_over"}
    assert {field.name for field in fields(Limits)} == {*LIMITS}


def test_every_condition_is_used() -> None:
    conditions = [rule.when for target in TARGETS for rule in rules_of(target).rule]
    conditions += [remedy.when for target in TARGETS for remedy in rules_of(target).remedy]
    conditions += [fault.when for target in FAULT_TARGETS for fault in faults_of(target).fault]
    assert {name for when in conditions for name in when.given()} == {field.name for field in fields(When)}
    limits = [hazard.when for target in TARGETS for hazard in rules_of(target).hazard]
    assert {name for limit in limits for name in limit.given()} == {field.name for field in fields(Limits)}


@pytest.mark.parametrize("target", TARGETS)
def test_rules_name_rewrites_that_exist(target: str) -> None:
    for rule in rules_of(target).rule:
        assert set(rule.helps) <= set(REWRITES), rule.id


@pytest.mark.parametrize("target", TARGETS)
def test_rules_are_facts_with_an_address(target: str) -> None:
    rules = rules_of(target)
    manual = "docs/android.md" if target == "tflite" else "https://"
    assert all(rule.source.startswith(("https://", manual)) and rule.advice for rule in rules.rule)
    assert all(rule.source.startswith("https://") and rule.advice for rule in rules.hazard)
    assert "16384" not in rule_path(target).read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 'one'", "version: .*; correct the rule"),
        ("rank_over = 5", "rank_under = 5", "rank_under"),
        ('confidence = "documented"', 'confidence = "sure"', "confidence"),
        ('verdict = "likely"', 'verdict = "runs on ANE"', "verdict"),
        ("rank_over = 5", "", "rule rank: its condition is empty"),
        ('id = "integers"', 'id = "float32"', "two rules are called float32"),
        ('since = "iOS18"', 'since = "iOS99"', "rule blocks: iOS99 is not one of iOS15"),
        ("weight_bytes_over =", "rank_over = 5\nweight_bytes_over =", "is a condition on a package"),
        ("overflows_over = 0", "", "rule overflow: its condition is empty"),
        ("overflows_over = 0", "overflows_over = 0\nlargest = 1.0", "largest"),
        ('source = "https://standards', 'source = "standards', "rule overflow: source is not an https address"),
        ("version = 1", "version 1", "cannot be read"),
    ],
)
def test_a_wrong_rule_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = RULE_FILE.read_text()
    assert old in text
    path = tmp_path / "rules.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ArtifactError, match=message) as caught:
        load_rules(path)
    assert "rules.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "shape", "faults"),
    [
        ("softmax", (10, 77, 77), ["batched-attention"]),
        ("softmax", (9, 77, 77), []),
        ("matmul", (10, 77, 77), []),
        ("scaled_dot_product_attention", (1, 8, 77, 64), ["fused-attention"]),
    ],
)
def test_known_faults_of_core_ml(kind: str, shape: tuple[int, ...], faults: list[str]) -> None:
    known = known_faults([Op(kind, "", (), (Value("y", shape),))], faults_of("coreml"))
    assert [item.fault.id for item in known.found] == faults
