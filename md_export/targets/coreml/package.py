"""The ``.mlpackage`` on disk and its specification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError

from md_export.errors import ArtifactError
from md_export.targets.coreml.vendor import ct

AUTHOR: Final = "com.apple.CoreML"
MODEL: Final = f"Data/{AUTHOR}/model.mlmodel"
WEIGHTS: Final = f"Data/{AUTHOR}/weights/weight.bin"


def read_spec(package: Path) -> Any:
    """The ``Model_pb2.Model`` of a package that holds one ML program, or of the default function of several.

    Raises:
        ArtifactError: there is no such package, or its specification cannot be parsed.
    """
    spec = read_whole_spec(package)
    default = spec.description.defaultFunctionName
    return take_function(spec, default, package) if default else spec


def read_whole_spec(package: Path) -> Any:
    """As :func:`read_spec`, with all functions that there are."""
    spec = ct.proto.Model_pb2.Model()
    try:
        spec.ParseFromString((package / MODEL).read_bytes())
    except (OSError, DecodeError) as error:
        raise ArtifactError(f"{package} is no readable .mlpackage ({error}); export it again") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise ArtifactError(f"{package} holds no ML program but {spec.WhichOneof('Type')}; export it again")
    return spec


def take_function(spec: Any, name: str, package: Path) -> Any:
    """Make of ``spec`` a program of that one function, ``main``, and of what the package says of it.

    Metadata of a function lie under its name: ``size_256/md_export.image_size``.

    Raises:
        ArtifactError: ``package``, whose specification it is, has no such function.
    """
    description, functions = spec.description, spec.mlProgram.functions
    surface = next((item for item in description.functions if item.name == name), None)
    if surface is None or name not in functions:
        raise ArtifactError(f"{package} has no function {name!r:.80}; it has {', '.join(sorted(functions)) or 'none'}")
    for field_name in ("input", "output", "state"):
        description.ClearField(field_name)
        getattr(description, field_name).extend(getattr(surface, field_name))
    description.ClearField("functions")
    description.ClearField("defaultFunctionName")
    _keep(functions, name)
    told = description.metadata.userDefined
    for key in list(told):
        value = told.pop(key)
        if key.startswith(f"{name}/"):
            told[key.removeprefix(f"{name}/")] = value
    return spec


def _keep(functions: Any, name: str) -> None:
    """Of a program's functions one, called ``main``."""
    kept = type(functions[name])()
    kept.CopyFrom(functions[name])
    functions.clear()
    functions["main"].CopyFrom(kept)


def main_operations(spec: Any) -> Any:
    """The operations of ``main``, constants included, in order of execution."""
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations
