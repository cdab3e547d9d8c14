"""Open a ``.mlpackage``: its specification and, on demand, its weight files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.blob import BlobFile

_MODEL_PATH = "@model_path/"


class Package:
    """A saved ML program on disk.

    Attributes:
        spec: the parsed ``Model_pb2.Model``.
    """

    def __init__(self, path: Path) -> None:
        """Read the manifest and the specification; the weights stay on disk.

        Raises:
            RuntimeFault: ``path`` is no ``.mlpackage`` with an ML program in it.
        """
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError

        model = _root_model(path)
        self.spec: Any = Model_pb2.Model()
        try:
            self.spec.ParseFromString(model.read_bytes())
        except (OSError, DecodeError) as error:
            raise RuntimeFault(f"{path}: the specification cannot be read: {error}; convert the model again") from error
        if self.spec.WhichOneof("Type") != "mlProgram":
            raise RuntimeFault(f"{path} holds a {self.spec.WhichOneof('Type')}, not an mlProgram")
        self._folder = model.parent
        self._files: dict[str, BlobFile] = {}

    def weights(self, name: str) -> BlobFile:
        """The weight file that the program calls ``name`` (``@model_path/…``), mapped once.

        Raises:
            RuntimeFault: the name leaves the package, or there is no such weight file.
        """
        if name not in self._files:
            path = (self._folder / name.removeprefix(_MODEL_PATH)).resolve()
            if not name.startswith(_MODEL_PATH) or not path.is_relative_to(self._folder.resolve()):
                raise RuntimeFault(f"the program refers to weights outside its package: {name}")
            self._files[name] = BlobFile(path)
        return self._files[name]


def _root_model(path: Path) -> Path:
    try:
        manifest = json.loads((path / "Manifest.json").read_text())
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeFault(f"{path} is no .mlpackage (its Manifest.json names no model): {error!r}") from error
    return path / "Data" / str(entry)
