"""Golden cases, and so the manifest, are the same whatever number of threads the environment asks for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from md_export.engine.export import cases
from md_export.engine.request import Resources
from md_export.spec.recipe import GoldenPlan
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.system.files import sha256_of


@pytest.mark.usefixtures("other_server")
def test_golden_cases_do_not_depend_on_the_number_of_threads(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread torch sums the nano decoder's convolutions in another order than with more."""
    checkpoint = shutil.copytree(nano, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("golden", "training"))
    recipe = replace(load_recipe(builtin_recipe("onnx", "fp32")), golden=GoldenPlan(("a large blue square",)))
    found = set()
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        golden, _ = cases(recipe, Path(checkpoint), tmp_path / threads, resources=Resources(cache=None))
        found.add(sha256_of(golden))
    assert len(found) == 1
