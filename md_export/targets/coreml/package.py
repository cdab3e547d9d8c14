"""The ``.mlpackage`` on disk: read its specification, write it with the same bytes for the same model."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from md_export.errors import ArtifactError, OutputError
from md_export.targets.coreml.vendor import ct

_AUTHOR: Final = "com.apple.CoreML"
MODEL: Final = f"Data/{_AUTHOR}/model.mlmodel"
WEIGHTS: Final = f"Data/{_AUTHOR}/weights/weight.bin"
_MANIFEST: Final = "Manifest.json"
_DATE: Final = "com.github.apple.coremltools.conversion_date"


@dataclass(frozen=True)
class Lowered:
    """A model between two stages: on disk, so that no stage holds another's copy of the weights.

    Attributes:
        package: coremltools' own ``.mlpackage`` in the job's workdir.
        modules: constant's name in the program → path of the torch module that owns the weight.
    """

    package: Path
    modules: dict[str, str]


def read_spec(package: Path) -> Any:
    """The ``Model_pb2.Model`` of a package that holds one ML program.

    Raises:
        ArtifactError: there is no such package, or its specification cannot be parsed.
    """
    spec = ct.proto.Model_pb2.Model()
    try:
        spec.ParseFromString((package / MODEL).read_bytes())
    except (OSError, DecodeError) as error:
        raise ArtifactError(f"{package} is no readable .mlpackage ({error}); export it again") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise ArtifactError(f"{package} holds no ML program but {spec.WhichOneof('Type')}; export it again")
    return spec


def main_operations(spec: Any) -> Any:
    """The operations of ``main``, constants included, in order of execution."""
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def save(model: Lowered, path: Path) -> None:
    """Write the package at ``path``, the same bytes in every process.

    coremltools stamps the day, draws random identifiers and leaves map entries in hash order: the
    day is removed, identifiers are made from the content, maps are sorted.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    spec = read_spec(model.package)
    spec.description.metadata.userDefined.pop(_DATE, None)
    try:
        (path / WEIGHTS).parent.mkdir(parents=True)
        (path / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
        if (model.package / WEIGHTS).exists():
            shutil.copyfile(model.package / WEIGHTS, path / WEIGHTS)
        (path / _MANIFEST).write_text(json.dumps(_manifest(path), indent=4, sort_keys=True) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; choose another OUT") from error


def _manifest(path: Path) -> dict[str, Any]:
    items = (
        ("model.mlmodel", "CoreML Model Specification", path / MODEL),
        ("weights", "CoreML Model Weights", path / WEIGHTS),
    )
    entries: dict[str, Any] = {}
    for name, description, file in items:
        identifier = uuid.uuid5(uuid.NAMESPACE_OID, f"{name}:{_sha256(file)}")
        entries[str(identifier)] = {
            "author": _AUTHOR,
            "description": description,
            "name": name,
            "path": f"{_AUTHOR}/{name}",
        }
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": next(iter(entries))}


def _sha256(file: Path) -> str:
    if not file.exists():
        return "none"
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
