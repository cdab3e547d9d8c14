"""Write an ``.mlpackage`` with the same bytes for the same model; join several into one, and split them again."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from md_export.errors import OutputError
from md_export.system.files import sha256_of
from md_export.targets.contract import labelled
from md_export.targets.coreml.package import (
    AUTHOR,
    MODEL,
    WEIGHTS,
    read_spec,
    read_whole_spec,
    take_function,
    write_modules,
)
from md_export.targets.coreml.target import CoremlModel
from md_export.targets.coreml.vendor import converting, ct

_MANIFEST: Final = "Manifest.json"
_DATE: Final = "com.github.apple.coremltools.conversion_date"


def save(model: CoremlModel, path: Path) -> None:
    """Write the package at ``path``, the same bytes in every process.

    coremltools writes the date, random identifiers, and map entries in hash order: the date is removed, identifiers
    are derived from the content, and maps are sorted. The metadata has the torch module of each operation, and the
    job's metadata.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    spec = read_spec(model.package)
    write_modules(spec, model.modules)
    spec.description.metadata.userDefined.update(labelled(model.notes))
    write_package(spec, model.package / WEIGHTS, path)


def write_package(spec: Any, weights: Path, path: Path) -> None:
    """Write a specification and a copy of its weight file, if there is one, as the package ``path``.

    Raises:
        OutputError: see :func:`save`.
    """
    spec.description.metadata.userDefined.pop(_DATE, None)
    try:
        (path / WEIGHTS).parent.mkdir(parents=True)
        (path / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
        if weights.exists():
            shutil.copyfile(weights, path / WEIGHTS)
        (path / _MANIFEST).write_text(json.dumps(_manifest(path), indent=4, sort_keys=True) + "\n")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; choose another OUT") from error


def _manifest(path: Path) -> dict[str, object]:
    items = (
        ("model.mlmodel", "CoreML Model Specification", path / MODEL),
        ("weights", "CoreML Model Weights", path / WEIGHTS),
    )
    entries: dict[str, dict[str, str]] = {}
    for name, description, file in items:
        identifier = uuid.uuid5(uuid.NAMESPACE_OID, f"{name}:{_sha256_or_none(file)}")
        entry = {"author": AUTHOR, "description": description, "name": name, "path": f"{AUTHOR}/{name}"}
        entries[str(identifier)] = entry
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": next(iter(entries))}


def _sha256_or_none(file: Path) -> str:
    """Return the hash of a weight file; a program without weights has none."""
    return sha256_of(file) if file.exists() else "none"


def join(packages: Mapping[str, Path], path: Path, workdir: Path) -> None:
    """Write a package with the programs of ``packages`` as functions, by their names; the first is the default.

    Core ML loads such packages since iOS 18; an app names the function in ``MLModelConfiguration.functionName``.

    Equal weights are stored once. The metadata of a package stays with its function.

    Args:
        workdir: an empty folder on a disk with room for the result.

    Raises:
        ConversionError: coremltools cannot join them.
        OutputError: ``path`` cannot be written.
    """
    made = workdir / "joined.mlpackage"
    wanted = ct.utils.MultiFunctionDescriptor()
    with converting(path.stem, "joining"):
        for name, package in packages.items():
            wanted.add_function(str(package), "main", name)
        wanted.default_function_name = next(iter(packages))
        ct.utils.save_multifunction(wanted, str(made))
    spec = read_whole_spec(made)
    for name, package in packages.items():
        told = read_spec(package).description.metadata.userDefined
        for key in sorted(told):
            spec.description.metadata.userDefined[f"{name}/{key}"] = told[key]
    write_package(spec, made / WEIGHTS, path)


def split(package: Path, function: str, path: Path) -> None:
    """Write one function as a separate package, with the weight file of all functions.

    Raises:
        ArtifactError: the package has no such function.
        OutputError: ``path`` cannot be written.
    """
    write_package(take_function(read_whole_spec(package), function, package), package / WEIGHTS, path)
