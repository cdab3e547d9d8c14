"""What ``--budget`` takes, and what it says to whoever writes something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from md_export.engine.search.request import Budget, SearchRequest, parse_budget, starting_recipe
from md_export.errors import UsageError
from md_export.spec.shipped_files import builtin_recipe


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("picture=34", Budget(picture_db=34.0)),
        ("picture=34.5dB", Budget(picture_db=34.5)),
        ("snr=20", Budget(snr_db=20.0)),
        ("bits=4.5", Budget(bits=4.5)),
        ("bytes=2100000", Budget(bytes=2_100_000)),
        ("bytes=2.1MB", Budget(bytes=2_100_000)),
        ("bytes=2.1M", Budget(bytes=2_100_000)),
        ("bytes=800kB", Budget(bytes=800_000)),
        ("bytes=800k", Budget(bytes=800_000)),
        ("bytes=1GB", Budget(bytes=10**9)),
        ("bytes=.5G", Budget(bytes=5 * 10**8)),
        ("bytes=2 MiB", Budget(bytes=2 << 20)),
        ("bytes=1KiB", Budget(bytes=1024)),
        ("bytes=3GiB", Budget(bytes=3 << 30)),
        ("bytes=12B", Budget(bytes=12)),
    ],
)
def test_each_name_fills_its_field(text: str, budget: Budget) -> None:
    assert parse_budget([text]) == budget


def test_several_hold_together() -> None:
    budget = parse_budget(["picture=34", "bytes=2MB", "score=0.98"], judge="./judge")
    assert budget == Budget(picture_db=34.0, bytes=2_000_000, score=0.98)
    assert budget.spelled == "picture at least 34 dB, score at least 0.98, at most 2,000,000 bytes"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], r"needs a --budget: picture=34, snr=20, bytes=2\.1MB, bits=4\.5 or score=0\.98"),
        (["34"], r"'34': write picture=34"),
        (["psnr=34"], r"'psnr=34': write picture=34"),
        (["picture"], "write decibels above 0"),
        (["picture=0"], "write decibels above 0 and up to 200, as picture=34"),
        (["picture=nan"], "write decibels"),
        (["picture=inf"], "write decibels"),
        (["snr=-3"], "write decibels"),
        (["snr=1e2"], "write decibels"),
        (["bytes=2,1MB"], r"'bytes=2,1MB': write a size, as bytes=2\.1MB"),
        (["bytes=0.5"], "write a size"),
        (["bytes=1TB"], "write a size"),
        (["bytes=2i"], "write a size"),
        (["bytes=99999999999999999999"], "write a size"),
        (["bits=0"], r"write bits above 0 and up to 32, as bits=4\.5"),
        (["bits=33"], "write bits"),
        (["score=high"], "write the least score"),
        (["score=0.98"], "--budget score=… needs a judge: add --judge COMMAND"),
        (["bits=4", "bits=5"], "bits is given twice"),
    ],
)
def test_anything_else_is_told_what_to_write(texts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_budget(texts)


def test_a_judge_needs_a_score() -> None:
    with pytest.raises(UsageError, match="leave --judge out"):
        parse_budget(["bits=4"], judge="./judge")


@settings(deadline=None)
@given(st.sampled_from(["picture", "snr", "bytes", "bits", "score"]), st.text(max_size=12))
def test_no_text_crashes(name: str, value: str) -> None:
    try:
        budget = parse_budget([f"{name}={value}"], judge="./judge" if name == "score" else None)
    except UsageError:
        return
    assert budget.spelled


def test_a_recipe_of_many_steps_is_refused(tmp_path: Path) -> None:
    def request(recipe: Path) -> SearchRequest:
        return SearchRequest(tmp_path, "onnx", parse_budget(("picture=30",)), tmp_path / "out", recipe)

    assert starting_recipe(request(builtin_recipe("onnx", "fp16"))).name == "onnx-fp16"
    with pytest.raises(UsageError, match="takes 50 steps"):
        starting_recipe(request(builtin_recipe("onnx", "fp16-steps")))
