"""``--chunks``: exports whose denoiser is in several files, through every command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from md_export.checkpoint import open_checkpoint
from md_export.engine import chunks, dependencies
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.runnable_export import open_to_run
from md_export.errors import ArtifactError, GoldenError, RecipeError, UsageError
from md_export.models.sampling.generate import TorchRunner
from md_export.models.walk import Runners
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.judge import verify
from md_export.parity.opened_export import check_belongs, open_export
from md_export.parity.weights.audit import audit
from md_export.spec.given import MANIFEST
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe, recipe_from_dict, recipe_to_dict
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.variant import Variant
from mutations import rehash
from support import Exported, installed, made_once

SKIPS = ("border_conv_in", "border_down_blocks_0_resnets_0")


def recipe_of(target: str, precision: str, chunks: int | None = 2) -> Recipe:
    """The one that ships, on one prompt, with the thresholds that exports have for random weights."""
    recipe = load_recipe(builtin_recipe(target, precision)).eased()
    golden = dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:1], seeds=(0,))
    return dataclasses.replace(recipe, golden=golden, chunks=chunks)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, stable_checkpoint: Path) -> Exported:
    """``made("onnx", "fp32")``: an export in 2 chunks; other targets export the UNet alone. Do not change it."""

    def make(target: str, precision: str, out: Path) -> None:
        installed(target)
        recipe = recipe_of(target, precision)
        export(recipe if target == "onnx" else recipe.narrowed(("unet",)), stable_checkpoint, out)

    return made_once(tmp_path_factory, "chunked", make)


def test_chunks_are_judged_one_by_one_and_together(made: Exported, stable_checkpoint: Path) -> None:
    out = made("onnx", "fp32")
    manifest = read_manifest(out)
    assert manifest.family == "sd15:2"
    assert [entry.component for entry in manifest.artifacts] == [
        "text_encoder",
        "unet_chunk1",
        "unet_chunk2",
        "vae_decoder",
    ]
    assert [entry.file for entry in manifest.artifacts][1:3] == ["unet_chunk1.onnx", "unet_chunk2.onnx"]
    result = verify(out)
    assert result.passed, result.failures
    snr = {item.component: item.parity.snr_db for item in result.components if item.parity}
    assert {"unet_chunk1", "unet_chunk2", "unet"} < snr.keys()
    assert min(snr.values()) > 100
    found = audit(out, stable_checkpoint)
    assert found.failures == ()
    assert all(item.missing == () and item.folded == () for item in found.components)


def test_pictures_are_those_of_the_whole(made: Exported, stable_checkpoint: Path) -> None:
    asked = [("a red cat", 3)]
    (whole,) = pictures_of_checkpoint(stable_checkpoint, asked)
    (cut,) = pictures_of_checkpoint(stable_checkpoint, asked, Variant(chunks=2))
    assert np.array_equal(whole, cut)
    (exported,) = pictures_of_artifacts(made("onnx", "fp32"), asked)
    assert np.abs(exported - whole).max() < 1e-4


def test_exchanged_skip_connections_fail(made: Exported, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made("onnx", "fp32"), out)
    model = onnx.load(out / "unet_chunk2.onnx")
    names = dict(zip(SKIPS, reversed(SKIPS), strict=True))
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, out / "unet_chunk2.onnx")
    rehash(out)
    failing = {line.partition(":")[0] for line in verify(out).failures if "snr" in line}
    assert failing == {"unet_chunk2", "unet"}


@pytest.mark.slow
@pytest.mark.seen("Stable Diffusion's UNet in two files", "verified and audited on every target")
@pytest.mark.parametrize("target", ["coreml", "tflite", "coreai"])
def test_every_target_cuts(made: Exported, stable_checkpoint: Path, target: str) -> None:
    """Verified it is, or there would be no export."""
    out = made(target, "fp16")
    sizes = [entry.bytes for entry in read_manifest(out).artifacts]
    assert len(sizes) == 2
    assert max(sizes) < 1.3 * min(sizes)
    found = audit(out, stable_checkpoint)
    assert found.failures == ()
    assert [item.missing for item in found.components] == [(), ()]


def test_chunks_of_golden_cases_share_a_module(stable_checkpoint: Path) -> None:
    backend = golden_source(open_checkpoint(stable_checkpoint).at(Variant(chunks=2))).pipeline.backend
    assert isinstance(backend, Runners)
    first, second = (backend.runners[name] for name in ("unet_chunk1", "unet_chunk2"))
    assert isinstance(first, TorchRunner)
    assert isinstance(second, TorchRunner)
    assert first.module is second.module


def test_a_first_chunk_that_takes_the_timestep_alone(made: Exported) -> None:
    """As that of the lite model in 16 chunks, which is the time embedding."""
    export, judged = open_to_run(made("onnx", "fp32")), open_export(made("onnx", "fp32"))
    first, second = export.denoiser
    given = {spec.name: spec for spec in first.inputs}
    first = dataclasses.replace(first, inputs=(given["timestep"],))
    second = dataclasses.replace(second, inputs=(given["sample"], *second.inputs))
    moved = dataclasses.replace(export, entries=export.entries | {one.component: one for one in (first, second)})
    assert not moved.inpaints
    assert not moved.edits
    manifest = dataclasses.replace(export.manifest, artifacts=tuple(moved.entries.values()))
    check_belongs(manifest, judged.golden, own=False)


def test_an_edited_number_of_chunks_is_seen(made: Exported, tmp_path: Path) -> None:
    plain = json.loads((made("onnx", "fp32") / MANIFEST).read_text())
    plain["family"] = "sd15"
    (tmp_path / MANIFEST).write_text(json.dumps(plain))
    with pytest.raises(ArtifactError, match="differ in chunks"):
        read_manifest(tmp_path)


def test_golden_cases_of_the_whole_do_not_judge_chunks(made: Exported, stable_checkpoint: Path, tmp_path: Path) -> None:
    whole = tmp_path / "golden"
    whole.mkdir()
    write_golden(golden_source(open_checkpoint(stable_checkpoint)), [("a cat", 0)], whole)
    with pytest.raises(GoldenError, match="golden cases of other chunks than the artifacts"):
        open_export(made("onnx", "fp32"), whole)
    with pytest.raises(GoldenError, match=r"of other chunks than the recipe's; make some with: .* --chunks 2"):
        export(recipe_of("onnx", "fp32"), stable_checkpoint, tmp_path / "out", whole)


def test_recipes_without_chunks_are_written_as_before() -> None:
    recipe = recipe_of("onnx", "fp32", None)
    assert "chunks" not in recipe_to_dict(recipe)
    cut = recipe.cut(2)
    assert recipe_to_dict(cut)["chunks"] == 2
    assert recipe_from_dict(recipe_to_dict(cut), "") == cut == cut.cut(2)
    assert cut.parts == ("text_encoder", "unet_chunk1", "unet_chunk2", "vae_decoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks": 1}, "chunks: 1 is not a number of chunks; give 2 to 16, auto, or leave it out"),
        ({"chunks": 17}, "chunks: 17 is not a number of chunks"),
        ({"chunks": 2, "components": ("vae_decoder",)}, "chunks is for unet or transformer, it has vae_decoder"),
        ({"chunks": 2, "target": "onnx", "npu": ("snapdragon-8-elite",)}, "npu compiles whole components, not chunks"),
        ({"chunks": 3, "target": "coreml", "layout": "swift"}, "reads a UNet in one file or in 2 chunks, not in 3"),
    ],
)
def test_what_cannot_be_cut_is_refused(changes: dict[str, object], message: str) -> None:
    plain = {**recipe_to_dict(recipe_of("onnx", "fp32", None)), **changes}
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(plain, "recipe")


def test_auto_takes_as_many_as_keep_each_file_small(stable_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("onnx", "fp32", None)
    auto = dataclasses.replace(recipe, chunks="auto")
    source = dependencies.source_of(stable_checkpoint, None, {auto.variant})
    assert chunks.cut_recipe(auto, source) == recipe, "a small model stays whole"
    whole = source.weights["unet"]
    monkeypatch.setattr(chunks, "LARGEST_FILE", 0.6 * whole)
    cut = chunks.cut_recipe(auto, source)
    assert cut.chunks == 2
    sizes = chunks.bytes_of(cut, source)
    assert sizes["unet_chunk1"] + sizes["unet_chunk2"] == whole
    assert max(sizes["unet_chunk1"], sizes["unet_chunk2"]) < 0.6 * whole
    monkeypatch.setattr(chunks, "LARGEST_FILE", 0.01 * whole)
    with pytest.raises(UsageError, match="chunks auto: 16 chunks do not keep each file of the unet below"):
        chunks.cut_recipe(auto, source)
