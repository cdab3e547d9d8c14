"""Checkpoints and golden cases mean the same on a machine that has them from the store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from engine.toy import step_of
from md_export.checkpoint import open_checkpoint
from md_export.engine.build_recipe import load_recipes
from md_export.engine.cache import Cache
from md_export.engine.dask import RemoteTask, perform_there, versions
from md_export.engine.inputs import inputs_for_store
from md_export.engine.keys import FileHashes
from md_export.engine.plan import Cost, GoldenRequest, Inputs, Step
from md_export.engine.request import BuildRequest
from md_export.engine.shared_store import BackedCache, Store
from md_export.errors import ArtifactError
from md_export.spec.loras import parse_lora
from md_export.system.files import sha256_of

pytest.importorskip("fsspec")


def request(folder: Path, checkpoint: Path, golden: Path | None = None) -> BuildRequest:
    return BuildRequest((), checkpoint, folder / "out", folder / "cache", golden)


def there(folder: Path, asked: BuildRequest) -> dict[str, Path]:
    """Where a machine that has nothing but the store finds the inputs."""
    store = Store(f"file://{folder}/store")
    cache, found = BackedCache(folder / "elsewhere", store), dict[str, Path]()
    for name, one in inputs_for_store(asked, FileHashes(folder / "seen")).items():
        store.put(one.entry, one.root)
        found[name] = cache.files(cache.require(one.entry.key).key) / one.within
    return found


@pytest.mark.parametrize("sibling", ["", "siblings/gelu"])
def test_a_checkpoint_is_the_same_there_with_what_it_inherits(tmp_path: Path, nano: Path, sibling: str) -> None:
    found = there(tmp_path, request(tmp_path, nano / sibling))["checkpoint"]
    assert open_checkpoint(found).sha256() == open_checkpoint(nano / sibling).sha256()
    assert not (found / "training").exists(), "only what is read"


def test_golden_cases_travel_without_what_lies_beside_them(tmp_path: Path, nano: Path) -> None:
    golden = Path(shutil.copytree(nano / "golden", tmp_path / "given"))
    (golden / "other.bin").write_text("")
    found = there(tmp_path, request(tmp_path, nano, golden))["golden"]
    assert sha256_of(found) == sha256_of(nano / "golden")


def test_a_link_to_a_lora_travels_as_its_file(tmp_path: Path, nano: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "style.safetensors").symlink_to(tmp_path / "blob")
    recipe = replace(load_recipes([Path("onnx-int8")])[0], loras=(str(tmp_path / "style.safetensors"),))
    found = there(tmp_path, replace(request(tmp_path, nano), recipes=(recipe,)))["lora 0"]
    assert (found.name, found.read_bytes()) == ("style.safetensors", b"weights")


def test_a_folder_of_peft_travels_with_its_config(tmp_path: Path, nano: Path) -> None:
    folder = tmp_path / "style"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        (folder / name).write_text(name)
    recipe = load_recipes([Path("onnx-int8")])[0]
    for given in (folder, folder / "adapter_model.safetensors"):
        asked = replace(request(tmp_path, nano), recipes=(replace(recipe, loras=(str(given),)),))
        found = parse_lora(str(there(tmp_path, asked)["lora 0"]))
        assert found.path.read_text() == "adapter_model.safetensors" and found.config is not None
        assert found.config.read_text() == "adapter_config.json" and not (found.path.parent / "README.md").exists()


def test_what_goes_away_meanwhile_is_named(tmp_path: Path, nano: Path) -> None:
    golden = Path(shutil.copytree(nano / "golden", tmp_path / "given"))
    (golden / "case-000.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"case-000\.safetensors disappeared; run the same command again"):
        inputs_for_store(request(tmp_path, nano, golden), FileHashes(tmp_path / "seen"))


def test_a_worker_fetches_the_loras_of_its_step_alone(
    tmp_path: Path, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker would fetch those of all recipes of the build, and check them before each step."""
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for file in files:
        file.write_bytes(file.name.encode())
    recipe = load_recipes([Path("onnx-int8")])[0]
    asked = replace(request(tmp_path, nano), recipes=tuple(replace(recipe, loras=(str(file),)) for file in files))
    there(tmp_path, asked)
    inputs = inputs_for_store(asked, FileHashes(tmp_path / "seen"))
    where = {name: (one.entry.key, one.within) for name, one in inputs.items()}
    step = replace(step_of("golden", "cases"), request=GoldenRequest(recipe, (("lora 1", ":0.5"),)))
    monkeypatch.setenv("MD_EXPORT_CACHE", str(tmp_path / "worker"))
    given: list[Inputs] = []

    def perform(step: Step, cache: Cache, work: Path, inputs: Inputs, most_bytes: int) -> Cost:
        del cache, work, most_bytes
        given.append(inputs)
        return step.cost

    perform_there(RemoteTask(step, f"file://{tmp_path}/store", where, 1, ("onnx",), versions(("onnx",))), perform)
    assert {name: path.read_text() for name, path in given[0].loras.items()} == {"lora 1": "1.safetensors"}
    assert (given[0].checkpoint / "unet").is_dir()
    kept = {path.name for path in (tmp_path / "worker" / "entries").iterdir()}
    assert kept == {where[name][0] for name in ("checkpoint", "lora 1")}
