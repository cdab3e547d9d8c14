from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from md_export.checkpoint import open_checkpoint
from md_export.errors import GoldenError
from md_export.parity.golden.folder import read_golden, write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.spec.prompts import prompts_in
from md_export.system.files import sha256_of


@pytest.fixture(scope="module")
def golden(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_golden(golden_source(open_checkpoint(other_checkpoint)), [("a cat", 0), ("a dog", 5)], folder)
    return folder


@pytest.fixture
def copied(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "golden"))


def edit_index(folder: Path, change: Any) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def rewrite_case(folder: Path, change: Any) -> None:
    """Change the tensors of the first case and make the index agree, so that the hash is no help."""
    path = folder / "case-000.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    edit_index(folder, lambda index: index["cases"][0].update(sha256=sha256_of(path)))


def test_holds_every_value_of_every_case(golden: Path, other_checkpoint: Path) -> None:
    opened = read_golden(golden)
    assert [(case.prompt, case.seed) for case in opened.cases] == [("a cat", 0), ("a dog", 5)]
    assert opened.index.checkpoint_sha256 == open_checkpoint(other_checkpoint).sha256()
    values = opened.cases[0].values
    assert values["given.input_ids"].dtype == np.int32
    assert values["sampler.timestep"].tolist() == [999.0]
    assert values["made.picture"].shape == (32, 32, 3)
    components = ("text_encoder.last_hidden_state", "unet.out_sample", "vae_decoder.image")
    floats = {"given.noise", *components, "sampler.latent", "made.picture"}
    assert set(values) == {*floats, "given.input_ids", "sampler.timestep"}
    for name in floats:
        assert values[name].dtype == np.float32
    assert set(opened.cases[0].inputs("unet")) == {"sample", "timestep", "encoder_hidden_states"}


def test_same_checkpoint_same_bytes(golden: Path, other_checkpoint: Path, tmp_path: Path) -> None:
    write_golden(golden_source(open_checkpoint(other_checkpoint)), [("a cat", 0), ("a dog", 5)], tmp_path)
    assert sha256_of(tmp_path) == sha256_of(golden)


def set_nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["unet.out_sample"][0, 0, 0, 0] = np.nan


OLD = "has schema 1, this version reads 2; make the golden cases again with: md-export golden CHECKPOINT -o DIR"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "md-export golden CHECKPOINT"),
        (lambda f: (f / "index.json").write_text("{"), "is not a golden index"),
        (lambda f: (f / "index.json").write_text("[]"), "is not a golden index"),
        (lambda f: (f / "case-001.safetensors").unlink(), "listed in index.json but missing"),
        (lambda f: (f / "case-001.safetensors").write_bytes(b"x"), "was altered"),
        (lambda f: edit_index(f, lambda i: i["cases"].clear()), "lists no case"),
        (
            lambda f: edit_index(f, lambda i: i.update(schema=1)),
            "has schema 1, this version reads 2; make the golden cases again with: md-export golden",
        ),
        (lambda f: edit_index(f, lambda i: i.update(note="x")), "note"),
        (lambda f: edit_index(f, lambda i: i["cases"][0].update(file="../x")), "not a plain name"),
        (lambda f: rewrite_case(f, set_nan), "NaN"),
        (lambda f: rewrite_case(f, lambda a: a.pop("sampler.latent")), "does not hold the tensors"),
        (lambda f: rewrite_case(f, lambda a: a.pop("unet.out_sample")), "does not hold the tensors"),
        (lambda f: rewrite_case(f, lambda a: a.pop("given.input_ids")), "does not hold the tensors"),
        (lambda f: rewrite_case(f, lambda a: a.update(extra=a["sampler.latent"])), "does not hold the tensors"),
    ],
)
def test_damage_is_named(copied: Path, damage: Any, message: str) -> None:
    damage(copied)
    with pytest.raises(GoldenError) as caught:
        read_golden(copied)
    assert message in str(caught.value)


def test_prompts_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog \n")
    assert prompts_in(path) == ["a cat", "a dog"]
    path.write_text("\n")
    with pytest.raises(GoldenError, match="one per line"):
        prompts_in(path)
    with pytest.raises(GoldenError, match="cannot be read"):
        prompts_in(tmp_path / "none")
