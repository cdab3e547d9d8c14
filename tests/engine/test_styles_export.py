"""Exports with inputs for styles: proved, chosen at run time, made later from a LoRA, and guarded by the gate."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from md_export.cli import cli
from md_export.diagnose.attribution.attribute import blame_part
from md_export.engine.against_checkpoint import audit, verify
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts
from md_export.engine.hops import Part, explain
from md_export.engine.selftest import comparer
from md_export.engine.style import make_style
from md_export.errors import ArtifactError, CheckpointError, RecipeError, UsageError
from md_export.parity.golden.folder import read_golden
from md_export.parity.judge import verify as judge
from md_export.parity.metrics import Check, compare
from md_export.parity.selftest.run import try_all
from md_export.parity.selftest.sandbox import agree, edit_json
from md_export.parity.selftest.table import MUTATIONS
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.style import read_style, scaled
from md_export.spec.tensors import Array, Arrays, is_style_input
from md_export.targets import TARGETS
from mutations import STYLES

OUTLINE = Path(__file__).parents[2] / "golden" / "nano" / "loras" / "outline.safetensors"
RANK = 4
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def out(nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("styles") / "out"
    recipe = load_recipe(builtin_recipe("onnx", "int8")).styled((str(OUTLINE),), RANK)
    export(recipe, nano, folder)
    return folder


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "copy"))


def unet(out: Path, values: Arrays, seed: int = 0) -> Array:
    entry = read_manifest(out).entry_for("unet")
    random = np.random.default_rng(seed)
    own = {x.name: random.normal(size=x.shape).astype(np.float32) for x in entry.inputs if not is_style_input(x.name)}
    own["timestep"] = np.asarray([999], np.float32)
    return TARGETS["onnx"].open().load(out / entry.file).run({**own, **values})[entry.outputs[0].name]


def outline_of(out: Path) -> dict[str, Array]:
    return read_style(out / "styles" / "outline" / "unet.safetensors", read_manifest(out).entry_for("unet").inputs)


@slow
def test_style_and_base_are_proved(out: Path) -> None:
    manifest, golden = read_manifest(out), read_golden(out / GOLDEN_FOLDER)
    assert [style.name for style in manifest.styles] == ["outline"]
    assert [case.style for case in golden.cases if case.style] == ["outline"] * 2
    assert judge(out).failures == ()
    assert {array.dtype for array in load_file(out / "styles" / "outline" / "unet.safetensors").values()} == {
        np.dtype(np.float16)
    }


@slow
def test_scale_0_is_the_base_bit_for_bit(out: Path) -> None:
    values = outline_of(out)
    base = unet(out, {name: np.zeros_like(value) for name, value in values.items()})
    assert np.array_equal(unet(out, scaled(values, 0.0)), base)
    assert compare(unet(out, values), base).snr_db < 20


@slow
def test_pictures_in_a_style(out: Path) -> None:
    (case, *_) = (one for one in read_golden(out / GOLDEN_FOLDER).cases if one.style)
    asked = [(case.prompt, case.seed)]
    styled, plain, faint = (
        pictures_of_artifacts(out, asked, style=style)[0] for style in ("outline", None, "outline:0.01")
    )
    assert compare(styled, case.picture.astype(np.float32)).psnr_db > 30
    assert compare(plain, case.picture.astype(np.float32)).psnr_db < 25
    assert compare(faint, plain).psnr_db > 30
    with pytest.raises(UsageError, match="has no style 'crayon'; it has outline"):
        pictures_of_artifacts(out, asked, style="crayon")


@slow
def test_a_style_made_later(out: Path, nano: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(
        cli,
        ["style", str(OUTLINE), "--for", str(out), "--checkpoint", str(nano), "-o", str(tmp_path / "made")],
        catch_exceptions=False,
    )
    assert run.exit_code == 0, run.output
    made, own = (load_file(folder / "unet.safetensors") for folder in (tmp_path / "made", out / "styles" / "outline"))
    assert all(np.array_equal(made[name], own[name]) for name in own)
    adapter = ort.LoraAdapter()
    adapter.Load(str(tmp_path / "made" / "unet.onnx_adapter"))
    (picture,) = pictures_of_artifacts(out, [("a large red circle", 0)], style=str(tmp_path / "made"))
    (wanted,) = pictures_of_artifacts(out, [("a large red circle", 0)], style="outline")
    assert np.array_equal(picture, wanted)


def product_of(down: Array, up: Array) -> NDArray[np.float64]:
    first, second = (down, up) if up.shape[-2] == RANK else (up, down)
    made: NDArray[np.float64] = first.astype(np.float64) @ second.astype(np.float64)
    return made


@slow
def test_two_styles_at_once(out: Path, nano: Path, tmp_path: Path) -> None:
    make_style(out, nano, [str(OUTLINE), f"{OUTLINE}:0.25"], tmp_path / "both", print)
    both, own = (
        read_style(tmp_path / "both" / "unet.safetensors", read_manifest(out).entry_for("unet").inputs),
        outline_of(out),
    )
    # The same LoRA twice: 1.25 times its difference of each weight.
    for down in (name for name in own if name.endswith("_down")):
        up = f"{down.removesuffix('_down')}_up"
        once, twice = (product_of(one[down], one[up]) for one in (own, both))
        assert compare(twice, 1.25 * once).snr_db > 50
        assert compare(twice, once).snr_db < 20


@slow
def test_what_does_not_fit_is_refused(out: Path, nano: Path, tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_7_proj_in"
    save_file(
        {
            f"{name}.lora_up.weight": np.ones((8, 2), np.float32),
            f"{name}.lora_down.weight": np.ones((2, 8), np.float32),
        },
        tmp_path / "other.safetensors",
    )
    with pytest.raises(CheckpointError, match="not in this checkpoint's unet"):
        make_style(out, nano, [str(tmp_path / "other.safetensors")], tmp_path / "made", print)
    random = np.random.default_rng(0)
    layer = "lora_unet_conv_in"
    for rank in (RANK, RANK + 1):
        down = random.normal(size=(rank, 8, 3, 3)).astype(np.float32)
        up = random.normal(size=(48, rank, 1, 1)).astype(np.float32)
        save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tmp_path / f"{rank}.safetensors")
    make_style(out, nano, [str(tmp_path / f"{RANK}.safetensors")], tmp_path / "fits", print)
    with pytest.raises(UsageError, match=rf"has rank {RANK + 1} in unet conv_in.*--style-rank {RANK + 1}"):
        make_style(out, nano, [str(tmp_path / f"{RANK + 1}.safetensors")], tmp_path / "made", print)
    assert not (tmp_path / "made").exists()


@slow
def test_against_the_checkpoint(out: Path, nano: Path) -> None:
    with pytest.raises(UsageError, match=r"has styles \(outline\); name the file of outline with --lora"):
        verify(out, nano)
    assert verify(out, nano, loras=[str(OUTLINE)]).failures == ()
    found = verify(out, nano, loras=[f"{OUTLINE}:0.5"]).failures
    assert any("the style outline was not made from" in line for line in found)
    assert audit(out, nano, loras=[str(OUTLINE)]).failures == ()


@slow
def test_the_self_test_damages_styles(out: Path, nano: Path) -> None:
    again = {entry.component: out / entry.file for entry in read_manifest(out).artifacts}
    tried = [one for one in MUTATIONS if one.name in STYLES]
    rows = list(try_all(out, comparer(nano, again), tried))
    assert {row.mutation for row in rows} >= STYLES
    assert [row for row in rows if not row.passed or row.verdict == "not applicable"] == []


@slow
def test_modules_of_the_base_are_attributed(out: Path, nano: Path) -> None:
    found = blame_part(Part(out, "unet", nano))
    assert found.snr_db > 20
    assert found.matched > found.leaves / 2


@slow
def test_a_rejected_export_with_styles_names_the_hop(copy: Path, nano: Path) -> None:
    edit_json(copy / "manifest.json", lambda values: values["recipe"]["tolerances"]["unet"].update(snr_db=100.0))
    (line,) = explain(copy, judge(copy), nano, print)
    assert line.startswith("unet: quantized falls short first")


@slow
def test_styles_struck_or_planted_are_noticed(copy: Path) -> None:
    folder = copy / "styles"
    shutil.copytree(folder / "outline", folder / "planted")
    edit_json(copy / "manifest.json", lambda values: values["files"].update({"styles/planted/unet.safetensors": ""}))
    agree(copy)
    assert any("styles/planted/unet.safetensors is of no style" in line for line in judge(copy).failures)
    shutil.rmtree(folder)
    edit_json(copy / "manifest.json", lambda values: values.pop("styles"))
    edit_json(copy / GOLDEN_FOLDER / "index.json", lambda index: [index["cases"].pop() for _ in range(2)])
    agree(copy)
    assert any("unet has inputs for styles, and no style changes it" in line for line in judge(copy).failures)


@slow
@pytest.mark.parametrize("factor", [0.5, -1.0])
def test_a_damaged_style_fails(copy: Path, factor: float) -> None:
    path = copy / "styles" / "outline" / "unet.safetensors"
    values = load_file(path)
    save_file({name: value * np.float16(factor if name.endswith("_up") else 1) for name, value in values.items()}, path)
    assert {fault.check for fault in judge(copy).faults} >= {Check.BYTES}
    agree(copy)
    assert {fault.check for fault in judge(copy).faults} >= {Check.FIGURES}


@slow
@pytest.mark.parametrize("kind", ["missing", "shape", "nan", "name"])
def test_a_file_that_is_no_style(copy: Path, kind: str) -> None:
    path = copy / "styles" / "outline" / "unet.safetensors"
    values = load_file(path)
    name = next(name for name in values if name.endswith("_up"))
    if kind == "shape":
        values[name] = values[name][..., :1].copy()
    elif kind == "nan":
        values[name].reshape(-1)[0] = np.nan
    else:
        values["lora_other_up"] = values.pop(name)
    path.unlink()
    if kind != "missing":
        save_file(values, path)
    with pytest.raises(ArtifactError, match="make it again"):
        judge(copy)


def test_recipes_with_styles() -> None:
    recipe = load_recipe(builtin_recipe("coreml", "fp16"))
    for changes, words in (
        ({"styles": ("a.safetensors", "b/a.safetensors")}, "two have the name 'a'"),
        ({"styles": ("a.safetensors",), "loras": ("b.safetensors",)}, "styles cannot be combined with loras"),
        ({"styles": ("a.safetensors",), "chunks": 2}, "styles cannot be combined with chunks"),
        ({"style_rank": 0}, "style_rank: 0 is not a rank"),
    ):
        with pytest.raises(RecipeError, match=words):
            dataclasses.replace(recipe, **changes)
