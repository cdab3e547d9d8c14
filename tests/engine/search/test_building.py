from __future__ import annotations

import sys
from pathlib import Path

import pytest

from md_export.engine.export import export
from md_export.engine.request import Resources
from md_export.engine.search.budget import Budget
from md_export.engine.search.building import build, judged, sealed
from md_export.engine.search.choice import Form
from md_export.engine.search.recipe_writing import chosen_recipe
from md_export.errors import RuntimeFault
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe


def command(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


def test_the_last_line_is_the_score(tmp_path: Path) -> None:
    assert judged(command("import sys; print('seen', sys.argv[1]); print(0.75)"), tmp_path) == 0.75


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no-such-program-at-all", "cannot be started"),
        (command("raise SystemExit('no pictures')"), "no pictures"),
        (command("print('good')"), "not a score"),
        (command("print('nan')"), "not a score"),
        (command("pass"), "not a score"),
        ('"', "cannot be started"),
    ],
)
def test_a_judge_that_gives_none_is_one_clear_error(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=said):
        judged(text, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_a_component_that_did_not_change_is_built_once(nano: Path, tmp_path: Path) -> None:
    """Two tries that differ in one component, and the one that was found with its thresholds."""
    recipe = load_recipe(builtin_recipe("onnx", "fp16")).narrowed(("text_encoder", "vae_decoder"))
    smaller = chosen_recipe(recipe, {"vae_decoder": {"decoder.conv_in": Form("int8")}}, recipe.name)
    told: list[str] = []
    first = build(recipe, nano, tmp_path / "1", None, told.append, Resources())
    second = build(smaller, nano, tmp_path / "2", None, told.append, Resources())
    found = sealed(smaller, second.quality, Budget(snr_db=10.0))
    export(found, nano, tmp_path / "found", None, told.append)
    assert [line for line in told if line.startswith("to build: ")] == [
        "to build: golden cases, text_encoder, vae_decoder, verify; from the cache: nothing",
        "to build: vae_decoder, verify; from the cache: golden cases, text_encoder",
        "to build: verify; from the cache: golden cases, text_encoder, vae_decoder",
    ]
    assert first.manifest.artifacts[0] == second.manifest.artifacts[0]
    assert read_manifest(tmp_path / "found").artifacts == second.manifest.artifacts
    assert read_manifest(tmp_path / "found").recipe.tolerances["vae_decoder"].snr_db == 10.0
