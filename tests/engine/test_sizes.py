"""Pictures of other sizes than a checkpoint was trained for, and exports of several sizes in one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from md_export.checkpoint import open_checkpoint
from md_export.cli import cli
from md_export.engine.costs import artifact_cost
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.join import join, read_functions, split, verify_functions
from md_export.engine.planning import plan
from md_export.errors import ArtifactError, GoldenError, RecipeError, UsageError
from md_export.models.config import ModelConfig
from md_export.parity.golden.folder import read_golden, write_golden
from md_export.parity.golden.prepare import golden_source, planned_cases, present_golden
from md_export.parity.judge import verify
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.variant import TRAINED, Variant
from md_export.targets import TARGETS

# The small checkpoint's decoder enlarges 4 times, and its own pictures have 32 pixels a side.
OWN, OTHER = 32, 48


def recipe(name: str, size: int | None = None) -> Recipe:
    return load_recipe(builtin_recipe(*name.split("-"))).varied(Variant(size))


def golden_of(checkpoint: Path, folder: Path, size: int | None) -> Path:
    folder.mkdir()
    write_golden(golden_source(open_checkpoint(checkpoint).at(Variant(size))), [("a cat", 0)], folder)
    return folder


def test_only_the_latent_depends_on_the_size(other_config: ModelConfig) -> None:
    assert (other_config.latent_shape, other_config.image_size) == ((1, 8, 8, 8), OWN)
    larger = other_config.at(Variant(OTHER))
    assert (larger.latent_shape, larger.image_size) == ((1, 8, 12, 12), OTHER)
    assert dataclasses.replace(larger, variant=TRAINED) == other_config
    assert other_config.at(Variant(OWN)) == other_config


@pytest.mark.parametrize(("size", "nearest"), [(40, 32), (100, 96), (16, 32), (1040, 1024), (8192, 1024)])
def test_a_size_that_the_model_cannot_make(other_config: ModelConfig, size: int, nearest: int) -> None:
    with pytest.raises(UsageError, match=f"multiple of 16 pixels from 32 to 1024.* the nearest is {nearest}$"):
        other_config.at(Variant(size))


@pytest.mark.parametrize("size", [0, -64, 1 << 40, 10**400])
def test_no_size_at_all(size: int) -> None:
    with pytest.raises(RecipeError, match="is not a picture size") as caught:
        recipe("onnx-fp32", size)
    assert len(str(caught.value)) < 160


def test_a_recipe_bears_its_size(tmp_path: Path) -> None:
    text = builtin_recipe("onnx", "fp32").read_text()
    (tmp_path / "mine.toml").write_text(f"size = 96\n{text}")
    assert load_recipe(tmp_path / "mine.toml") == dataclasses.replace(recipe("onnx-fp32"), size=96)
    assert recipe("onnx-fp32", 96).name == "onnx-fp32-96"
    (tmp_path / "mine.toml").write_text(f'size = "96"\n{text}')
    with pytest.raises(RecipeError, match="size"):
        load_recipe(tmp_path / "mine.toml")


def test_cases_of_another_size_judge_nothing(nano: Path, other_checkpoint: Path, tmp_path: Path) -> None:
    own = open_checkpoint(nano)
    assert present_golden(own, None) == nano / "golden"
    assert present_golden(own.at(Variant(96)), None) is None
    cases = read_golden(nano / "golden").cases
    assert planned_cases(recipe("onnx-fp32"), own.at(Variant(96))) == [(case.prompt, case.seed) for case in cases]

    given, checkpoint = golden_of(other_checkpoint, tmp_path / "golden", OTHER), open_checkpoint(other_checkpoint)
    assert present_golden(checkpoint.at(Variant(OTHER)), given) == given
    with pytest.raises(GoldenError, match=r"pictures of 48 × 48 pixels.* 32 × 32; .*--size 32 -o DIR"):
        present_golden(checkpoint, given)


def test_a_plan_of_two_sizes_shares_no_step(nano: Path) -> None:
    both = plan([recipe("onnx-fp32"), recipe("onnx-fp32", 96)], nano, None)
    alone = [plan([one], nano, None) for one in (recipe("onnx-fp32"), recipe("onnx-fp32", 96))]
    assert len(both.steps) == sum(len(one.steps) for one in alone)
    assert [step.label for step in both.steps if step.kind == "golden"] == ["golden cases", "16 golden cases by torch"]


def test_larger_pictures_are_planned_with_more_memory() -> None:
    scheme = recipe("onnx-fp16").schemes["unet"]
    decoder, unet = (
        {area: artifact_cost("onnx", name, scheme, 10**9, area) for area in (0.25, 1.0, 2.25)}
        for name in ("vae_decoder", "unet")
    )
    assert decoder[0.25] == decoder[1.0]
    assert decoder[2.25].peak_bytes > 2 * decoder[1.0].peak_bytes
    assert unet[2.25] == unet[1.0], "weights take most of it"


@pytest.mark.slow
def test_an_export_of_another_size(other_checkpoint: Path, tmp_path: Path) -> None:
    given, out = golden_of(other_checkpoint, tmp_path / "golden", OTHER), tmp_path / "out"
    manifest, result = export(recipe("onnx-fp32", OTHER), other_checkpoint, out, given)
    assert result.passed
    assert manifest.recipe.size == OTHER
    assert manifest.entry_for("unet").inputs[0].shape == (1, 8, 12, 12)
    found = TARGETS["onnx"].open().describe(out / "vae_decoder.onnx")
    assert (found.notes["image_size"], found.notes["latent_shape"]) == ("48", "1,8,12,12")
    (made,), (wanted,) = (
        pictures_of_artifacts(out, [("a cat", 0)]),
        pictures_of_checkpoint(other_checkpoint, [("a cat", 0)], Variant(OTHER)),
    )
    assert made.shape == (OTHER, OTHER, 3)
    assert abs(made - wanted).max() < 1e-3
    with pytest.raises(GoldenError, match="latents of 8 × 8, the artifacts take 12 × 12"):
        verify(out, golden_of(other_checkpoint, tmp_path / "small", None))


@pytest.fixture(scope="module")
def decoders(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The small checkpoint's decoder as Core ML packages, by the size of its pictures."""
    folder = tmp_path_factory.mktemp("sizes")
    for size in (OWN, OTHER):
        given = golden_of(other_checkpoint, folder / f"golden-{size}", size)
        export(recipe("coreml-fp16", size).narrowed(("vae_decoder",)), other_checkpoint, folder / str(size), given)
    return {size: folder / str(size) for size in (OWN, OTHER)}


@pytest.fixture(scope="module")
def joined(decoders: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("joined") / "out"
    ((shared,), results) = join([decoders[OTHER], decoders[OWN]], out)
    assert all(result.passed for result in results)
    weights = [path / "vae_decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin" for path in (decoders[OWN], out)]
    assert weights[1].stat().st_size <= weights[0].stat().st_size
    assert shared.joined < shared.apart
    return out


@pytest.mark.slow
def test_sizes_in_one_package_share_their_weights(joined: Path, decoders: dict[int, Path], tmp_path: Path) -> None:
    assert read_functions(joined) == ("size_48", "size_32")
    assert all(result.passed for result in verify_functions(joined).values())
    target = TARGETS["coreml"].open()
    for size in (OWN, OTHER):
        out = tmp_path / str(size)
        split(joined, f"size_{size}", out)
        assert verify(out).passed
        cases = read_golden(out / "golden").cases
        assert read_manifest(out).entry_for("vae_decoder").outputs[0].shape == (1, 3, size, size)
        inputs = dict(cases[0].inputs("vae_decoder"))
        made, before = (target.load(path / "vae_decoder.mlpackage").run(inputs) for path in (out, decoders[size]))
        assert (made["image"] == before["image"]).all()
    whole = target.describe(joined / "vae_decoder.mlpackage")
    assert whole.notes["image_size"] == "48", "a tool that knows no functions sees the default one"


@pytest.mark.slow
def test_a_damaged_function_is_noticed(joined: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(joined, tmp_path / "out"))
    weights = out / "vae_decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[-64:] = bytes(64)
    weights.write_bytes(content)
    assert all("its bytes are not those" in result.failures[0] for result in verify_functions(out).values())
    found = CliRunner().invoke(cli, ["manifest", "check", str(out)])
    assert isinstance(found.exception, ArtifactError)
    assert all(f"{name}: vae_decoder.mlpackage was altered" in str(found.exception) for name in read_functions(out))


@pytest.mark.slow
def test_files_of_each_function_are_checked(joined: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(joined, tmp_path / "out"))
    assert CliRunner().invoke(cli, ["manifest", "check", str(out)], catch_exceptions=False).exit_code == 0
    (out / "size_32" / "tokenizer" / "merges.txt").write_text("altered\n")
    found = CliRunner().invoke(cli, ["manifest", "check", str(out)])
    assert "size_32: tokenizer/merges.txt was altered" in str(found.exception)


@pytest.mark.slow
def test_what_cannot_be_joined(decoders: dict[int, Path], tmp_path: Path) -> None:
    out, own = tmp_path / "out", decoders[OWN]
    with pytest.raises(UsageError, match="two or more Core ML exports"):
        join([own], out)
    copy = Path(shutil.copytree(own, tmp_path / "copy"))
    with pytest.raises(UsageError, match="have the same size"):
        join([own, copy], out)
    values = json.loads((own / "manifest.json").read_text())
    other_recipe = {**values["recipe"], "picture_psnr_db": 1.0}
    for change, said in (
        ({"checkpoint_sha256": "0" * 64}, "different checkpoints"),
        ({"recipe": other_recipe}, "recipes differ in picture_psnr_db"),
    ):
        (copy / "manifest.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(UsageError, match=said):
            join([own, copy], out)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2, "functions": ["a"]}', '{"schema": 1, "functions": []}'])
def test_a_list_of_functions_that_is_none(joined: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "join.json").write_text(text)
    with pytest.raises(ArtifactError, match="join again"):
        read_functions(tmp_path)
    (tmp_path / "join.json").write_text('{"schema": 1, "functions": ["../../etc"]}')
    with pytest.raises(ArtifactError, match="invalid name"):
        read_functions(tmp_path)
    with pytest.raises(ArtifactError, match="has no function 'size_7'; it has size_48, size_32"):
        split(joined, "size_7", tmp_path / "out")
    with pytest.raises(ArtifactError, match="take one out with: md-export split"):
        read_manifest(joined)
