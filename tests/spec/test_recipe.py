from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from md_export.cli import cli
from md_export.errors import OutputError, RecipeError, UsageError
from md_export.models.families import COMPONENTS
from md_export.rewrites import REWRITES
from md_export.spec.names import COMPONENT_NAMES
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.recipe_file import load_recipe, recipe_from_dict, recipe_from_toml, recipe_to_dict
from md_export.spec.scheme import QuantScheme, Weights, stored_type
from md_export.spec.shipped_files import builtin_recipe, builtin_recipes, recipe_file
from md_export.targets import TARGETS

GOOD = """
name = "mine"
target = "onnx"
rewrites = ["gelu_to_swish"]

[scheme]
weights = "int8"
activations = "int8_static"

[scheme.vae_decoder]
keep_float = ["decoder.conv_*"]

[tolerance]
snr_db = 20
picture_psnr_db = 30

[tolerance.unet]
snr_db = 25.5
cosine = 0.99

[golden]
prompts = ["a"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_flag_names_a_recipe(target: str, precision: str) -> None:
    recipe = load_recipe(builtin_recipe(target, precision))
    assert recipe.target == target
    assert recipe.name == f"{target}-{precision}"
    assert set(recipe.tolerances) == set(recipe.components) == set(COMPONENTS)
    assert set(recipe.rewrites) <= set(REWRITES)


@pytest.mark.parametrize(("precision", "least"), [("fp32", 90.0), ("fp16", 55.0), ("int8", 20.0)])
def test_thresholds_hold_what_is_promised(precision: str, least: float) -> None:
    for target in TARGETS:
        recipe = load_recipe(builtin_recipe(target, precision))
        assert all(item.snr_db >= least for item in recipe.tolerances.values())
        assert recipe.picture_psnr_db >= 30


COMPRESSED = ("int4", "palette8", "palette6", "palette4", "w8a8", "sparse-int8")


@pytest.mark.parametrize("scheme", COMPRESSED)
def test_compressed_recipes_are_core_mls_and_judge(scheme: str) -> None:
    recipe = load_recipe(builtin_recipe("coreml", scheme))
    assert (recipe.name, recipe.target) == (f"coreml-{scheme}", "coreml")
    assert set(recipe.tolerances) == set(recipe.components) == set(COMPONENTS)
    assert min(item.snr_db for item in recipe.tolerances.values()) >= 9
    assert recipe.tolerances["text_encoder"].snr_db >= 20
    assert recipe.picture_psnr_db >= 26


def test_int8_activations_of_core_ai_are_calibrated_and_judge() -> None:
    recipe = load_recipe(builtin_recipe("coreai", "w8a8"))
    assert (recipe.name, recipe.target) == ("coreai-w8a8", "coreai")
    assert recipe.calibration is not None
    assert all(recipe.schemes[component].is_static for component in recipe.components)
    assert min(item.snr_db for item in recipe.tolerances.values()) >= 20
    assert recipe.picture_psnr_db >= 35


def test_a_recipe_that_ships_is_found_by_name(tmp_path: Path) -> None:
    assert recipe_file(Path("coreml-palette6")) == builtin_recipe("coreml", "palette6")
    assert recipe_file(tmp_path / "mine.toml") == tmp_path / "mine.toml"
    assert recipe_file(Path("coreml-palette7")) == Path("coreml-palette7")
    assert {f"coreml-{scheme}" for scheme in COMPRESSED} < set(builtin_recipes())


SCHEME = '[scheme]\nweights = "int8"\nactivations = "int8_static"\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('weights = "palette4"', "[scheme] granularity: a palette's table is for"),
        ('weights = "palette4"\ngranularity = "block"\nblock_size = 32', "[scheme] granularity: a palette's table"),
        ('weights = "palette5"', "[scheme] weights"),
        ('weights = "int4"\nblock_size = 32', '[scheme] block_size: goes with granularity = "block"'),
        ('weights = "int4"\ngranularity = "block"', '[scheme] block_size: goes with granularity = "block"'),
        ('weights = "int4"\ngranularity = "block"\nblock_size = 1', "[scheme] block_size: 1 is too few"),
        ('weights = "palette4"\ngranularity = "tensor"\ngroup_size = 16', "[scheme] group_size: goes with"),
        ('weights = "int8"\ngranularity = "group"\ngroup_size = 16', '[scheme] granularity: "group" is for palettes'),
        ('weights = "float16"\ngranularity = "block"\nblock_size = 8', '[scheme] granularity: "block" is for int8'),
        ('weights = "int8"\nsparsity = 1.0', "[scheme] sparsity: 1 is not between"),
        ('weights = "int8"\nsparsity = 0.0', "[scheme] sparsity: 0 is not between"),
        ('weights = "int8"\nsparsity = "half"', "[scheme] sparsity"),
    ],
)
def test_schemes_that_contradict_themselves_name_the_field(tmp_path: Path, lines: str, message: str) -> None:
    changed = GOOD.replace(SCHEME, f'[scheme]\n{lines}\nactivations = "int8_static"\n', 1)
    assert changed != GOOD
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, changed))
    assert message in str(caught.value)
    assert "recipe.toml" in str(caught.value)


def test_what_goes_beyond_a_scale_per_channel_is_told_in_a_recipes_words() -> None:
    assert QuantScheme("int8", "float16").refinements == ()
    blocks = QuantScheme("int4", "float16", "block", block_size=32, sparsity=0.5)
    assert blocks.refinements == ("block_size = 32", "sparsity = 0.5")


@pytest.mark.parametrize(
    ("weights", "bits", "stored"),
    [("palette6", 6, "uint6"), ("palette8", 8, "uint8"), ("int4", None, "int4"), ("float16", None, "float16")],
)
def test_palettes_are_stored_as_indices(weights: Weights, bits: int | None, stored: str) -> None:
    granularity: typing.Literal["tensor"] = "tensor"
    assert QuantScheme(weights, "float16", granularity).palette_bits == bits
    assert stored_type(weights) == stored


def test_component_names_are_the_tables() -> None:
    assert tuple(COMPONENTS) == COMPONENT_NAMES


def test_shared_tables_spread_to_components(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.schemes["unet"].keep_float == ()
    assert recipe.schemes["vae_decoder"].keeps_float("decoder.conv_in")
    assert not recipe.schemes["vae_decoder"].keeps_float("decoder.mid_block.conv_in")
    assert recipe.tolerances["unet"].snr_db == 25.5
    assert recipe.tolerances["text_encoder"].snr_db == 20
    assert recipe.picture_psnr_db == 30


def test_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe_from_dict(recipe_to_dict(recipe), "again") == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"int8"\n', '"int7"\n', "[scheme] weights"),
        ("weights =", "weigths =", "did you mean 'weights'"),
        ("snr_db = 20\n", "", "[tolerance] snr_db is missing"),
        ("snr_db = 20\n", 'snr_db = "20"\n', "[tolerance] snr_db"),
        ("picture_psnr_db = 30\n", "", "[tolerance] picture_psnr_db is missing"),
        ("target =", "tarket =", "unknown field 'tarket'; did you mean 'target'?"),
        ("[scheme.vae_decoder]", "[scheme.vae_decode]", "[scheme.vae_decode] is not a component"),
        ("[golden]", "[goldn]", "golden is missing"),
        (
            "[tolerance.unet]\nsnr_db = 25.5",
            "[tolerance.unet]\nsnr_db = 25.5\nssim = 1",
            "[tolerance.unet] unknown field 'ssim'",
        ),
        ("[golden]", "[golden", "not valid TOML"),
        ('rewrites = ["gelu_to_swish"]', "schemes = 1", "did you mean the table [scheme]"),
        ('rewrites = ["gelu_to_swish"]', "rewrites = [2]", "rewrites"),
        ('rewrites = ["gelu_to_swish"]', "components = 3", "components"),
        ('rewrites = ["gelu_to_swish"]', 'components = ["unet", "vae"]', "components"),
        ('rewrites = ["gelu_to_swish"]', "allow_drift = 1979-05-27", "recipe.toml"),
    ],
)
def test_errors_name_file_table_and_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD.replace(old, new, 1)))
    assert message in str(caught.value)
    assert "recipe.toml" in str(caught.value)


@pytest.mark.parametrize("version", ["2", "2.1", "2.1.6", "any"])
def test_the_oldest_litert(tmp_path: Path, version: str) -> None:
    fields = f'name = "mine"\nextends = "tflite-fp32"\nmin_litert = "{version}"\n'
    assert load_recipe(write(tmp_path, fields)).min_litert == version
    with pytest.raises(RecipeError, match="min_litert is for the target tflite; leave it out"):
        load_recipe(write(tmp_path, fields.replace("tflite-", "onnx-")))


@pytest.mark.parametrize("version", ["", "2.", "2.x", "-1", "2.1.6\\n", "9" * 5, "2.1.5.0", "٢.١"])
def test_what_is_no_version_of_litert(tmp_path: Path, version: str) -> None:
    with pytest.raises(RecipeError, match=r"is no version of LiteRT|control character"):
        load_recipe(write(tmp_path, f'name = "mine"\nextends = "tflite-fp32"\nmin_litert = "{version}"\n'))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")


def test_narrowing() -> None:
    recipe = load_recipe(builtin_recipe("onnx", "fp32"))
    assert recipe.narrowed(("unet",)).components == ("unet",)
    assert recipe.narrowed(()) == recipe
    with pytest.raises(RecipeError, match="vae_encoder"):
        recipe.narrowed(("vae_encoder",))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_hostile_values_give_our_own_error(value: object) -> None:
    with pytest.raises(RecipeError):
        recipe_from_dict(typing.cast(dict[str, object], value), "hostile")


def test_thresholds_have_no_default() -> None:
    required = {name for name, field in Recipe.__dataclass_fields__.items() if field.default is field.default_factory}
    assert {"tolerances", "picture_psnr_db"} <= required


RULES = """
[[scheme.unet.rules]]
modules = ["up_blocks.*.conv1", "conv_in"]
weights = "palette4"
granularity = "group"
group_size = 16

[[scheme.unet.rules]]
modules = ["up_blocks.*"]
weights = "float16"
"""


def with_rules(rules: str) -> bytes:
    recipe = builtin_recipe("coreml", "int8").read_text().replace("[tolerance]", f"{rules}\n[tolerance]", 1)
    return recipe.encode()


def test_the_first_rule_that_matches_a_module_counts() -> None:
    recipe = recipe_from_toml(with_rules(RULES), Path("r.toml"))
    scheme = recipe.schemes["unet"]
    assert scheme.for_module("up_blocks.0.resnets.1.conv1").group_size == 16
    assert scheme.for_module("up_blocks.0.resnets.1.conv2").weights == "float16"
    assert scheme.for_module("mid_block.conv1") == dataclasses.replace(scheme, rules=())
    assert scheme.all_weights == ("int8", "palette4", "float16")
    assert recipe_from_dict(recipe_to_dict(recipe), "r.toml") == recipe


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("group_size = 16", "", "goes with granularity"),
        ('modules = ["up_blocks.*"]', "modules = []", "modules is empty"),
        ('weights = "palette4"', 'weights = "int4"', '"group" is for palettes'),
        ("group_size = 16", "group_size = 16\nbits = 3", "unknown field 'bits'; known: modules, weights"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(said)):
        recipe_from_toml(with_rules(RULES.replace(old, new)), Path("r.toml"))


@pytest.mark.seen("a recipe that changes a few fields of another", "`extends`")
def test_a_recipe_extends_another(tmp_path: Path) -> None:
    """Tables are merged field by field; everything else of the file replaces the other's."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "base.toml").write_text(
        'name = "base"\nextends = "onnx-int8"\nloras = ["a.safetensors:0.5"]\n[tolerance.unet]\nsnr_db = 33.0\n'
    )
    (tmp_path / "mine.toml").write_text('name = "mine"\nextends = "own/base.toml"\n[tolerance.unet]\ncosine = 0.9\n')
    shipped, mine = load_recipe(builtin_recipe("onnx", "int8")), load_recipe(tmp_path / "mine.toml")
    assert mine.tolerances["unet"] == Tolerance(snr_db=33.0, cosine=0.9)
    assert mine.tolerances["text_encoder"] == shipped.tolerances["text_encoder"]
    assert (mine.name, mine.schemes, mine.golden) == ("mine", shipped.schemes, shipped.golden)
    assert mine.loras == (f"{(tmp_path / 'own' / 'a.safetensors').resolve()}:0.5",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "x"\nextends = "mine.toml"\n', "is not a recipe, or extends itself"),
        ('name = "x"\nextends = 3\n', "extends: 3 is not a recipe"),
        ('name = "x"\nextends = "none.toml"\n', "none.toml: cannot be read"),
        ('extends = "onnx-int8"\n', "name is missing; a recipe that extends another"),
        ('name = "x"\nextends = "onnx-int8"\nrewrite = []\n', "unknown field 'rewrite'; did you mean 'rewrites'"),
    ],
)
def test_what_cannot_be_extended(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "mine.toml")


def test_recipes_are_listed_printed_and_copied(tmp_path: Path) -> None:
    run, mine = CliRunner().invoke, tmp_path / "mine.toml"
    listed = run(cli, ["recipe", "list", "--json", "-"])
    assert [one["name"] for one in json.loads(listed.stdout)] == list(builtin_recipes())
    assert run(cli, ["recipe", "show", "onnx-int8"]).output == builtin_recipe("onnx", "int8").read_text()
    assert run(cli, ["recipe", "new", "onnx-int8", "-o", str(mine)]).exit_code == 0
    assert load_recipe(mine) == dataclasses.replace(load_recipe(builtin_recipe("onnx", "int8")), name="mine")
    again = run(cli, ["recipe", "new", "onnx-int8", "-o", str(mine)])
    assert isinstance(again.exception, OutputError)
    assert isinstance(run(cli, ["recipe", "show", "onnx-int9"]).exception, UsageError)


def test_a_recipe_of_a_whole_model_is_completed_for_another_family() -> None:
    recipe = load_recipe(builtin_recipe("coreml", "palette4"))
    two = recipe.completed(("text_encoder", "text_encoder_2", "unet", "vae_decoder"))
    assert two.components == ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
    assert two.schemes["text_encoder_2"] == two.schemes["text_encoder"]
    flat = recipe.widened(("vae_encoder",)).completed(("transformer", "vae_decoder"))
    assert flat.components == ("vae_encoder", "transformer", "vae_decoder")
    assert flat.tolerances["transformer"] == recipe.tolerances["unet"]
    part = recipe.narrowed(("unet",))
    assert part.completed(("text_encoder", "transformer", "vae_decoder")) == part


def test_conv_in_and_conv_out_are_the_ends_of_a_component() -> None:
    scheme = QuantScheme("int8", "int8_static", keep_float=("decoder.conv_in", "decoder.conv_out", "*.norm"))
    assert scheme.for_layers(["decoder.conv_in", "a", "decoder.conv_out"]) == scheme
    assert scheme.for_layers(["decoder.layers.0", "a", "decoder.layers.18"]).keep_float == (
        "decoder.layers.0",
        "decoder.layers.18",
        "*.norm",
    )
