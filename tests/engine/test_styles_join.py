"""Core ML exports with LoRAs beside the weights, joined to one package with a function for each style."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from md_export.engine.export import export
from md_export.engine.join import join, read_functions, split, verify_functions
from md_export.errors import UsageError
from md_export.parity.metrics import compare
from md_export.spec.artifact import artifact_path
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.system.files import bytes_of
from md_export.targets import TARGETS

OUTLINE = Path(__file__).parents[2] / "golden" / "nano" / "loras" / "outline.safetensors"
LORAS = {"base": (), "outline": (str(OUTLINE),), "outline_0_5": (f"{OUTLINE}:0.5",)}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["fp16", "palette4"])
def exports(nano: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("styles")
    recipe = load_recipe(builtin_recipe("coreml", request.param)).narrowed(("unet",))
    for name, loras in LORAS.items():
        export(recipe.adapted(loras, unfused=bool(loras)), nano, folder / name)
    return {name: folder / name for name in LORAS}


@pytest.fixture(scope="module")
def joined(exports: dict[str, Path]) -> Path:
    out = next(iter(exports.values())).parent / "joined"
    join([*exports.values()], out)
    return out


def test_weights_are_stored_once_and_every_function_is_proved(exports: dict[str, Path], joined: Path) -> None:
    assert read_functions(joined) == tuple(LORAS)
    assert all(not verdict.failures for verdict in verify_functions(joined).values())
    base, weights = (bytes_of(path / "unet.mlpackage") for path in (exports["base"], joined))
    graphs = sum(bytes_of(path / "unet.mlpackage/Data/com.apple.CoreML/model.mlmodel") for path in exports.values())
    # Each style's factors in float16, two times the file of its half scale.
    assert weights < base + graphs + 2.2 * OUTLINE.stat().st_size


def test_functions_differ(joined: Path, tmp_path: Path) -> None:
    values = {}
    for name in LORAS:
        manifest = split(joined, name, tmp_path / name)
        entry = manifest.entry_for("unet")
        runner = TARGETS["coreml"].open().load(artifact_path(tmp_path / name, entry))
        values[name] = runner.run({spec.name: spec.zeros() + 1 for spec in entry.inputs})[entry.outputs[0].name]
    assert compare(values["outline"], values["base"]).snr_db < 30
    assert compare(values["outline_0_5"], values["base"]).snr_db - compare(values["outline"], values["base"]).snr_db > 3


def test_fused_weights_are_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    fused = Path(shutil.copytree(exports["outline"], tmp_path / "fused"))
    values = json.loads((fused / "manifest.json").read_text())
    del values["recipe"]["unfused"]
    (fused / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"fused into the weights.*--unfused"):
        join([exports["base"], fused], tmp_path / "out")


def test_the_same_style_twice_is_refused(exports: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exports["outline"], tmp_path / "copy"))
    with pytest.raises(UsageError, match="same size and LoRAs"):
        join([exports["base"], exports["outline"], copy], tmp_path / "out")
    assert read_manifest(copy).recipe.unfused
