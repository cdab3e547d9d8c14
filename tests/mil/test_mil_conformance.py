"""A slice of coremltools' own op tests passes, and would not pass if the results were wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance_table import merge, page

TOOL = Path(__file__).with_name("conformance.py")


def _suite(report: Path, *options: str) -> tuple[int, dict[str, int], list[Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    argv = [sys.executable, str(TOOL), "--json", str(report), *options]
    code = subprocess.run(argv, cwd=report.parent, env=environment, capture_output=True, check=False).returncode
    found = json.loads(report.read_text())
    total: dict[str, int] = {}
    for counts in found["counts"].values():
        for column, count in counts.items():
            total[column] = total.get(column, 0) + count
    return code, total, found["failures"]


# Every test of the suite with one of its parameter sets; make mil-conformance runs all, docs/mil.md has the table.
@pytest.mark.slow
def test_a_slice_of_the_suite_passes(tmp_path: Path) -> None:
    code, total, failures = _suite(tmp_path / "slice.json", "--each", "1")
    granted = ("known: ", "unimplemented: RuntimeFault: only ML programs can be executed, not neural networks")
    assert [text for _, text in failures if not text.startswith(granted)] == []
    assert code == 0
    assert total["compared"] >= 220


@pytest.mark.slow
def test_a_wrong_percent_is_noticed(tmp_path: Path) -> None:
    code, total, _ = _suite(
        tmp_path / "sabotage.json", "iOS14/test_elementwise_binary.py", "--shard", "0/3", "--sabotage"
    )
    assert code == 1
    assert total["failed"] > total["compared"] // 2


def test_shards_add_up() -> None:
    def shard(**counts: int) -> dict[str, Any]:
        return {
            "counts": {"iOS14/a.py": counts},
            "failures": [["x/tests/iOS14/a.py::T[1]", "failed: no (1)"]],
            "skips": {},
        }

    reports = [shard(collected=9, ran=4, passed=3, failed=1), shard(collected=9, ran=5, passed=5)]
    assert merge(reports)["iOS14/a.py"] == {"collected": 9, "scope": 0, "ran": 9, "passed": 8, "failed": 1}
    assert "- 2 × `iOS14/a.py::T`: failed: no" in list(page(reports))
