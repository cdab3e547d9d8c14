"""A slice of coremltools' own op tests passes, and would not pass if the results were wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.slow
def test_a_slice_of_the_suite_passes(tmp_path: Path) -> None:
    code, total, failures = _suite(tmp_path / "slice.json", "iOS14/test_elementwise_binary.py", "--shard", "0/3")
    assert failures == []
    assert code == 0
    assert total["compared"] >= 8


@pytest.mark.slow
def test_a_wrong_percent_is_noticed(tmp_path: Path) -> None:
    code, total, _ = _suite(
        tmp_path / "sabotage.json", "iOS14/test_elementwise_binary.py", "--shard", "0/3", "--sabotage"
    )
    assert code == 1
    assert total["failed"] > total["compared"] // 2
