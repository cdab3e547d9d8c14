"""Each figure has its budget: what is past it is named, what improves never is, and all forms say the same."""

from __future__ import annotations

import dataclasses
from typing import Any
from xml.etree import ElementTree

import pytest

from md_export.diagnose.compare import ExportComparison, Snapshot, compare_snapshots
from md_export.report.ci import comparison_junit, comparison_markdown, comparison_tables, error_annotations
from md_export.report.tables import console
from md_export.spec.artifact import Parity
from md_export.spec.recipe import Regression
from support import Judged

BUDGET = Regression(
    snr_db_loss=1.0,
    picture_psnr_db_loss=0.5,
    bytes_growth=0.02,
    ops_growth=0.05,
    new_lint_findings=0,
    new_cpu_ops=0,
)
COMPONENTS = ("text_encoder", "unet", "vae_decoder")


@pytest.fixture
def old(judged: Judged) -> Snapshot:
    """Three components alike, every figure known, and nothing that falls short."""
    verification, verdict = judged[1], judged[1].result
    good = tuple(
        dataclasses.replace(item, parity=Parity(41.5, 50.0, 0.999, 0.01), faults=()) for item in verdict.components
    )
    return Snapshot(
        dataclasses.replace(
            verification,
            result=dataclasses.replace(verdict, components=good),
            golden=dataclasses.replace(verification.golden, cases=verification.golden.cases[:2]),
            pictures=verification.pictures[:2],
        ),
        bytes=dict.fromkeys(COMPONENTS, 1000),
        stored={name: {"int8": 900, "float32": 100} for name in COMPONENTS},
        ops={name: {"Conv": 70, "Add": 30} for name in COMPONENTS},
        lint={name: {"rank-5": 3, "slow-softmax": 2} for name in COMPONENTS},
        cpu_ops=dict.fromkeys(COMPONENTS, 0),
    )


def with_snr(snapshot: Snapshot, component: str, snr_db: float) -> Snapshot:
    result = snapshot.verification.result
    parity = Parity(snr_db, 50.0, 0.999, 0.01)
    components = tuple(
        dataclasses.replace(item, parity=parity) if item.component == component else item for item in result.components
    )
    changed = dataclasses.replace(result, components=components)
    return dataclasses.replace(snapshot, verification=dataclasses.replace(snapshot.verification, result=changed))


def with_picture(snapshot: Snapshot, psnr_db: float) -> Snapshot:
    result = snapshot.verification.result
    assert result.picture is not None
    changed = dataclasses.replace(result, picture=dataclasses.replace(result.picture, psnr_db=psnr_db))
    return dataclasses.replace(snapshot, verification=dataclasses.replace(snapshot.verification, result=changed))


def with_unet(snapshot: Snapshot, field: str, value: object) -> Snapshot:
    changed: dict[str, Any] = {field: {**getattr(snapshot, field), "unet": value}}
    return dataclasses.replace(snapshot, **changed)


def test_the_same_twice_is_within_every_budget(old: Snapshot) -> None:
    result = compare_snapshots(old, old, BUDGET)
    assert result.failures == ()
    assert len(result.changes) == 3 * 5 + 1
    assert result.recounts == ()
    assert (result.picture_psnr_db, result.pictures) == (999.0, 2)


def test_each_figure_past_its_budget_is_named_alone(old: Snapshot) -> None:
    worse = {
        "unet: SNR dB 41.5 → 40.4 (-1.1 dB), past the recipe's -1 dB (snr_db_loss)": with_snr(old, "unet", 40.4),
        "picture: PSNR dB 36.1 → 35.5 (-0.6 dB), past the recipe's -0.5 dB (picture_psnr_db_loss)": with_picture(
            old, 35.5
        ),
        "unet: bytes 1,000 → 1,021 (+2.1%), past the recipe's +2.0% (bytes_growth)": with_unet(old, "bytes", 1021),
        "unet: ops 100 → 106 (+6.0%), past the recipe's +5.0% (ops_growth)": with_unet(
            old, "ops", {"Conv": 70, "Add": 36}
        ),
        "unet: lint findings 5 → 6 (+1), past the recipe's +0 (new_lint_findings)": with_unet(
            old, "lint", {"rank-5": 4, "slow-softmax": 2}
        ),
        "unet: ops on the CPU 0 → 1 (+1), past the recipe's +0 (new_cpu_ops)": with_unet(old, "cpu_ops", 1),
    }
    for failure, new in worse.items():
        assert compare_snapshots(old, new, BUDGET).failures == (failure,)


def test_up_to_the_budget_and_better_passes(old: Snapshot) -> None:
    for new in (
        with_snr(old, "unet", 40.5),
        with_snr(old, "unet", 90.0),
        with_unet(old, "bytes", 1020),
        with_unet(old, "bytes", 10),
        with_unet(old, "ops", {"Conv": 70, "Add": 35}),
        with_unet(old, "lint", {}),
    ):
        assert compare_snapshots(old, new, BUDGET).failures == ()


def test_a_rule_that_fits_less_does_not_pay_for_one_that_fits_more(old: Snapshot) -> None:
    new = with_unet(old, "lint", {"rank-5": 0, "slow-softmax": 3})
    (failure,) = compare_snapshots(old, new, BUDGET).failures
    assert failure.startswith("unet: lint findings 5 → 3 (+1)")


def test_nan_is_past_every_budget(old: Snapshot) -> None:
    assert compare_snapshots(old, with_snr(old, "unet", float("nan")), BUDGET).failures


def test_what_falls_short_by_itself_fails_without_any_figure(old: Snapshot, judged: Judged) -> None:
    broken = dataclasses.replace(old, verification=judged[1])
    failures = compare_snapshots(old, broken, BUDGET).failures
    assert failures[0] == "unet: snr 12.5 dB is below the recipe's 20 dB"
    assert any("snr_db_loss" in line for line in failures)


@pytest.fixture
def worse(old: Snapshot) -> ExportComparison:
    grown = with_unet(with_unet(old, "ops", {"Conv": 70, "Add": 29, "Reshape": 9}), "stored", {"float32": 1000})
    return compare_snapshots(old, with_snr(grown, "unet", 12.5), BUDGET)


def test_every_form_says_the_same(worse: ExportComparison, capsys: pytest.CaptureFixture[str]) -> None:
    markdown = comparison_markdown(worse)
    assert markdown.startswith("### onnx, onnx-int8: new against old: **past the budget**\n")
    assert "| unet | SNR dB | 41.5 | 12.5 | -29.0 dB | -1 dB | FAIL |" in markdown
    assert "| unet | ops | Reshape | 0 | 9 |" in markdown
    assert "| unet | stored bytes | int8 | 900 | 0 |" in markdown
    for table in comparison_tables(worse):
        console().print(table)
    printed = capsys.readouterr().out
    assert printed.count("FAIL") == 2
    root = ElementTree.fromstring(comparison_junit(worse))  # noqa: S314
    failed = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed == ["unet: SNR dB", "unet: ops"]


def test_annotations_survive_what_would_end_them() -> None:
    (line,) = error_annotations("a: b, c", ["100% wrong\n::error::two"], "dir,x/r:1.toml")
    assert line == "::error file=dir%2Cx/r%3A1.toml,title=a%3A b%2C c::100%25 wrong%0A::error::two"
