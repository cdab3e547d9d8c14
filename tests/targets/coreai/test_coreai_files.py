"""Bytes are the same in every process and tell nothing of the machine; damaged assets and wrong inputs are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export.errors import RuntimeFault, UsageError
from md_export.spec.recipe import QuantScheme
from md_export.system.files import sha256_of

SCHEME = QuantScheme("palette4", "float32", "group", group_size=16)
EXPORT = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parents[1])]
import conftest
from test_coreai_files import SCHEME

conftest.small_subject().export(SCHEME, Path(sys.argv[2]))
"""


def test_two_processes_write_the_same_bytes(asset: Callable[..., Path], tmp_path: Path) -> None:
    argv = [sys.executable, "-c", EXPORT, str(Path(__file__).parent), str(tmp_path)]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    made = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    first = asset("small", SCHEME)
    assert sha256_of(tmp_path / "x.aimodel") == sha256_of(first)
    assert sha256_of(first) != sha256_of(asset("small", QuantScheme("float32", "float32")))


def test_an_asset_tells_nothing_of_the_machine(asset: Callable[..., Path]) -> None:
    path = asset("text_encoder", QuantScheme("float32", "float32"))
    content = b"".join(file.read_bytes() for file in sorted(path.iterdir()))
    for word in (b"site-packages", b".py", str(Path(__file__).parents[3]).encode(), b"creationDate"):
        assert word not in content, word
    assert b"encoder.layers.0.self_attn.q_proj" in content
    assert hashlib.sha256((path / "main.mlirb").read_bytes()).digest() == (path / "main.hash").read_bytes()


def test_notes_are_inside(asset: Callable[..., Path], coreai: Any) -> None:
    path = asset("small", SCHEME)
    assert coreai.describe(path).notes == {"component": "text_encoder", "checkpoint_sha256": "0" * 64}
    assert json.loads((path / "metadata.json").read_text())["assetVersion"]


def cut(path: Path) -> None:
    content = (path / "main.mlirb").read_bytes()
    (path / "main.mlirb").write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray((path / "main.mlirb").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "main.mlirb").write_bytes(content)


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def become_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"MLIR")


def lose_the_hash(path: Path) -> None:
    (path / "main.hash").unlink()


def hold_text(path: Path) -> None:
    """Under a hash that agrees: Apple's parser itself must refuse it."""
    (path / "main.mlirb").write_bytes(b"no bytecode")
    (path / "main.hash").write_bytes(hashlib.sha256(b"no bytecode").digest())


@pytest.mark.parametrize("damage", [cut, flip, empty, become_a_file, lose_the_hash, hold_text])
@pytest.mark.parametrize("function", ["load", "describe", "graph"])
def test_a_damaged_asset_is_refused(
    damage: Callable[[Path], None], function: str, asset: Callable[..., Path], tmp_path: Path, coreai: Any
) -> None:
    copy = Path(shutil.copytree(asset("small", SCHEME), tmp_path / "x.aimodel"))
    damage(copy)
    with pytest.raises(RuntimeFault, match=r"x\.aimodel is not a Core AI asset; export it again"):
        getattr(coreai, function)(copy)


@pytest.mark.parametrize("metadata", ["", "[]", "{", '{"creatorDefinedMetadata": 3}', "null"])
def test_broken_metadata_means_no_notes(metadata: str, asset: Callable[..., Path], tmp_path: Path) -> None:
    from md_export.targets.coreai.save import read_notes

    copy = Path(shutil.copytree(asset("small", SCHEME), tmp_path / "x.aimodel"))
    (copy / "metadata.json").write_text(metadata)
    assert read_notes(copy) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "has the inputs input_ids; it was given none"),
        ({"input_ids": np.zeros((1, 24), np.float32)}, r"input_ids must be int32\[1, 24\], not float32\[1, 24\]"),
        ({"input_ids": np.zeros((1, 23), np.int32)}, r"not int32\[1, 23\]"),
        ({"input_ids": np.zeros((1, 24), np.int32), "more": np.zeros(1, np.int32)}, "it was given input_ids, more"),
    ],
)
def test_wrong_inputs_are_refused(given: dict[str, Any], message: str, asset: Callable[..., Path], coreai: Any) -> None:
    with pytest.raises(RuntimeFault, match=message):
        coreai.load(asset("small", SCHEME)).run(given)


def test_there_is_one_runtime(asset: Callable[..., Path], coreai: Any) -> None:
    with pytest.raises(UsageError, match="Apple's Core AI runtime only"):
        coreai.load(asset("small", SCHEME), "mil")


def test_what_was_put_back_is_the_same_program(
    subject: Any, asset: Callable[..., Path], coreai: Any, tmp_path: Path
) -> None:
    """Editing nothing changes nothing; storing as float keeps the function and loses the storage."""
    first, small = asset("small", SCHEME), subject("small")
    copy = Path(shutil.copytree(first, tmp_path / "x.aimodel"))
    with coreai.edit(copy):
        pass
    assert coreai.describe(copy) == coreai.describe(first)
    wanted = coreai.load(first).run(small.given)["out"]
    assert np.array_equal(coreai.load(copy).run(small.given)["out"], wanted)
    assert coreai.store_as_float(copy)
    assert "uint4" not in coreai.describe(copy).stored
    assert np.allclose(coreai.load(copy).run(small.given)["out"], wanted, atol=1e-5)
    assert not coreai.store_as_float(copy)
