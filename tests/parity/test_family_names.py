"""Exports and golden cases name their family; those of MobileDiffusion, and older ones, leave it out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from md_export.errors import ArtifactError, GoldenError
from md_export.parity.golden.folder import INDEX, read_golden, read_index, write_index
from md_export.spec.given import MANIFEST
from md_export.spec.manifest import manifest_from_bytes, manifest_to_dict, read_manifest, write_manifest
from support import Exported


def test_an_index_names_its_family(nano: Path, tmp_path: Path) -> None:
    golden = nano / "golden"
    index = read_index(golden)
    assert index.family == "md"
    write_index(index, tmp_path)
    assert (tmp_path / INDEX).read_bytes() == (golden / INDEX).read_bytes()
    shutil.copytree(golden, tmp_path, dirs_exist_ok=True)
    write_index(dataclasses.replace(index, family="sd15"), tmp_path)
    assert json.loads((tmp_path / INDEX).read_text())["family"] == "sd15"
    assert {case.graph.form.name for case in read_golden(tmp_path).cases} == {"sd15"}
    (tmp_path / INDEX).write_text((tmp_path / INDEX).read_text().replace('"sd15"', '"sd99"'))
    with pytest.raises(GoldenError, match="family: String should match"):
        read_index(tmp_path)


def test_a_manifest_names_its_family(exported: Exported, tmp_path: Path) -> None:
    out = exported("onnx", "int8")
    manifest = read_manifest(out)
    write_manifest(manifest, tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == (out / MANIFEST).read_bytes()
    assert "family" not in json.loads((out / MANIFEST).read_text())
    other = json.dumps({**manifest_to_dict(manifest), "family": "sd15"})
    assert manifest_from_bytes(other.encode(), out).family == "sd15"
    with pytest.raises(ArtifactError, match="family: String should match"):
        manifest_from_bytes(other.replace("sd15", "sd99").encode(), out)
