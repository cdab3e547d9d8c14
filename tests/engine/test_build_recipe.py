"""Build recipes: what they stand for, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from md_export.engine.build_recipe import load_recipes
from md_export.errors import RecipeError
from md_export.spec.shipped_files import builtin_recipe, builtin_recipes

SHIP = Path(__file__).parents[2] / "recipes" / "ship.toml"


def written(folder: Path, text: str) -> Path:
    path = folder / "build.toml"
    path.write_text(text)
    return path


def names(*files: Path) -> list[str]:
    return [recipe.name for recipe in load_recipes(files)]


def test_what_ships() -> None:
    found = load_recipes([SHIP])
    assert [recipe.name for recipe in found] == [
        f"{target}-{precision}" for target in ("coreml", "tflite", "onnx") for precision in ("fp16", "int8")
    ]
    assert all(len(recipe.components) == 3 for recipe in found)
    assert "ship" not in builtin_recipes(), "it is no export recipe"


def test_export_recipes_by_name_and_by_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(builtin_recipe("onnx", "fp32").read_text().replace("onnx-fp32", "mine"))
    assert names(Path("onnx-int8"), tmp_path / "mine.toml", Path("onnx-int8")) == ["onnx-int8", "mine"]


def test_recipes_beside_the_matrix_and_components(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(builtin_recipe("onnx", "fp32").read_text().replace("onnx-fp32", "mine"))
    text = (
        'name = "x"\nrecipes = ["mine.toml", "coreml-palette4"]\ncomponents = ["vae_decoder"]\n'
        '[matrix]\ntargets = ["onnx"]\nprecisions = ["fp16", "int4"]\n'
    )
    found = load_recipes([written(tmp_path, text)])
    assert [recipe.name for recipe in found] == ["mine", "coreml-palette4", "onnx-fp16", "onnx-int4"]
    assert {recipe.components for recipe in found} == {("vae_decoder",)}


def test_every_size_of_the_matrix(tmp_path: Path) -> None:
    text = 'name = "x"\n[matrix]\ntargets = ["onnx"]\nprecisions = ["fp16", "int8"]\nsizes = [256, 512]\n'
    found = load_recipes([written(tmp_path, text)])
    assert [(recipe.name, recipe.size) for recipe in found] == [
        ("onnx-fp16-256", 256),
        ("onnx-fp16-512", 512),
        ("onnx-int8-256", 256),
        ("onnx-int8-512", 512),
    ]


def test_every_set_of_loras_of_the_matrix(tmp_path: Path) -> None:
    text = (
        'name = "x"\n[matrix]\ntargets = ["onnx"]\nprecisions = ["fp16"]\n'
        'loras = [[], ["a.safetensors:0.5"], ["a.safetensors", "/b/b.safetensors:-1"]]\n'
    )
    found = load_recipes([written(tmp_path, text)])
    here = str((tmp_path / "a.safetensors").resolve())
    assert [(recipe.name, recipe.loras) for recipe in found] == [
        ("onnx-fp16", ()),
        ("onnx-fp16-a-0.5", (f"{here}:0.5",)),
        ("onnx-fp16-a-b--1", (here, "/b/b.safetensors:-1")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\n[matrix]\ntargets = ["onnx"]\nprecisions = ["fp16"]\nloras = ["x"]', "matrix.loras.0"),
        ('name = "x"\n[matrix]\ntargets = ["onnx"]\nprecisions = ["fp16"]\nsizes = [0]', "is not a picture size"),
        ('name = "x"\n[matrix]\ntargets = ["onnx"]\nprecisions = ["fp16"]\nsizes = ["x"]', "matrix.sizes.0"),
        (
            'name = "x"\n[matrix]\ntargets = ["tflite"]\nprecisions = ["palette4"]',
            "tflite has no 'palette4', only fp16",
        ),
        ('name = "x"\n[matrix]\ntargets = ["tf"]\nprecisions = ["fp16"]', "matrix.targets.0"),
        ('name = "x"\n[matrix]\ntargets = ["onnx"]', "matrix.precisions"),
        ('name = "x"\n[matrix]\ntargets = ["onnx"]\nprecisions = ["../x"]', "onnx has no '../x'"),
        ('name = "x"\n[matrix]\ntargets = []\nprecisions = []', "names no recipe"),
        ('name = "x"\nrecipes = []', "names no recipe"),
        ('name = "x"\nrecipes = ["nothing"]', "cannot be read"),
        ('name = "x"\nrecipes = [1]', "recipes.0"),
        ('recipes = ["onnx-fp16"]', "name"),
        ('name = "x"\nrecipes = ["onnx-fp16"]\nresolutions = [64]', "resolutions"),
        ('name = "x"\nrecipes = ["onnx-fp16"]\ncomponents = ["clip"]', "components.0"),
        ("name = ", "not valid TOML"),
        ("a = " + "[" * 20_000, "not valid TOML"),
    ],
)
def test_wrong_ones_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("[", r"\[")) as caught:
        load_recipes([written(tmp_path, text)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", "a\\\\b", ""])
def test_a_name_never_leads_elsewhere(tmp_path: Path, name: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(builtin_recipe("onnx", "fp32").read_text().replace("onnx-fp32", name))
    with pytest.raises(RecipeError):
        load_recipes([path])


def test_two_recipes_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(builtin_recipe("onnx", "fp32").read_text().replace("snr_db = 90.0", "snr_db = 91.0"))
    with pytest.raises(RecipeError, match="two different recipes are named onnx-fp32"):
        load_recipes([Path("onnx-fp32"), path])


def test_an_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"name a \.toml file or one of coreai-fp16"):
        load_recipes([Path("onnx-fp17")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"name = {'9' * 5000}", "not valid TOML"),
        ('name = "x"\n[matrix]\ntargets = ["onnx"]\nprecisions = [' + '"fp16",' * 2000 + "]", "names 2000 recipes"),
        ('name = "x\\u001b[2J"\nrecipes = ["onnx-fp16"]', "control character"),
        ("#" * (1 << 18), "not a regular file of at most"),
    ],
)
def test_hostile_build_recipes_are_one_clear_error(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "build.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_recipes([tmp_path / "build.toml"])


def test_a_device_is_no_build_recipe() -> None:
    with pytest.raises(RecipeError, match="not a regular file"):
        load_recipes([Path("/dev/zero")])
