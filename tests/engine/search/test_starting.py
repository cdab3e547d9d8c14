"""What a search starts from."""

from __future__ import annotations

from pathlib import Path

import pytest

from md_export.engine.search.budget import parse_budget
from md_export.engine.search.starting import SearchRequest, starting_recipe
from md_export.errors import UsageError
from md_export.spec.shipped_files import builtin_recipe


def test_a_recipe_of_many_steps_is_refused(tmp_path: Path) -> None:
    def request(recipe: Path) -> SearchRequest:
        return SearchRequest(tmp_path, "onnx", parse_budget(("picture=30",)), tmp_path / "out", recipe)

    assert starting_recipe(request(builtin_recipe("onnx", "fp16"))).name == "onnx-fp16"
    with pytest.raises(UsageError, match="takes 50 steps"):
        starting_recipe(request(builtin_recipe("onnx", "fp16-ddim")))
