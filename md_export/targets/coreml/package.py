"""The ``.mlpackage`` on disk, its specification, and its inputs and outputs as tensor specs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from pydantic import TypeAdapter, ValidationError
from torch.export import ExportedProgram

from md_export.errors import ArtifactError
from md_export.spec.tensors import TensorSpec
from md_export.targets.coreml.vendor import ct

AUTHOR: Final = "com.apple.CoreML"
MODEL: Final = f"Data/{AUTHOR}/model.mlmodel"
# Roles of constants of constexpr_* operations that are packed into bytes, for any type in the record.
PACKED: Final = ("indices", "mask")
WEIGHTS: Final = f"Data/{AUTHOR}/weights/weight.bin"
# ArrayFeatureType.ArrayDataType of Model.proto; inputs and outputs of components have only these types.
_DTYPES: Final = {65568: "float32", 131104: "int32"}
# Key in the package's user-defined metadata; JSON: module path → names of the operations' first outputs.
KEY: Final = "md_export.modules"
_FORM: Final = TypeAdapter(dict[str, list[str]])


def read_spec(package: Path) -> Any:
    """Read the ``Model_pb2.Model`` of a package: its program, or the default function's if it has several.

    Raises:
        ArtifactError: the package does not exist, or its specification cannot be parsed.
    """
    spec = read_whole_spec(package)
    default = spec.description.defaultFunctionName
    return take_function(spec, default, package) if default else spec


def read_whole_spec(package: Path) -> Any:
    """Read the specification as :func:`read_spec` does, with all functions."""
    spec = ct.proto.Model_pb2.Model()
    try:
        spec.ParseFromString((package / MODEL).read_bytes())
    except (OSError, DecodeError) as error:
        raise ArtifactError(f"{package} cannot be read as .mlpackage ({error}); export it again") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise ArtifactError(f"{package} holds {spec.WhichOneof('Type')}, not an ML program; export it again")
    return spec


def take_function(spec: Any, name: str, package: Path) -> Any:
    """Reduce ``spec`` in place to one function, renamed ``main``, and its metadata.

    Keys of a function's metadata start with its name: ``size_256/md_export.image_size``.

    Raises:
        ArtifactError: the package has no such function.
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
    """Keep one of a program's functions, under the name ``main``."""
    kept = type(functions[name])()
    kept.CopyFrom(functions[name])
    functions.clear()
    functions["main"].CopyFrom(kept)


def main_operations(spec: Any) -> Any:
    """Return the operations of ``main`` with constants, in order of execution."""
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def feature_specs(features: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """Convert ``FeatureDescription`` messages to specs.

    Raises:
        ArtifactError: a feature is not a float32 or int32 array.
    """
    return tuple(_spec(feature) for feature in features)


def _spec(feature: Any) -> TensorSpec:
    array = feature.type.multiArrayType
    if array.dataType not in _DTYPES:
        raise ArtifactError(f"{feature.name} is not a float32 or int32 array; export the package again")
    return TensorSpec(feature.name, tuple(int(size) for size in array.shape), _DTYPES[array.dataType])


class Operand(NamedTuple):
    """Argument of an operation: the name of a value, or a constant inside the operation.

    Attributes:
        place: position among the operands of the role.
        name: name of the value; "" for a constant.
        given: the constant's ``MIL_pb2.Value``; None for the name of a value.
    """

    role: str
    place: int
    name: str
    given: Any


def operands_of(op: Any) -> Iterator[Operand]:
    """Yield the inputs of an operation, then its attributes."""
    for role, value in op.inputs.items():
        for place, argument in enumerate(value.arguments):
            yield Operand(role, place, argument.name, None if argument.name else argument.value)
    for role, value in op.attributes.items():
        yield Operand(role, 0, "", value)


class Blob(NamedTuple):
    """A constant in the weight file: its role in an operation, and the offset of its record."""

    role: str
    offset: int


def blobs_of(op: Any) -> Iterator[Blob]:
    """Yield the constants in the weight file that an operation reads."""
    for role, _, _, given in operands_of(op):
        if given is not None and given.WhichOneof("value") == "blobFileValue":
            yield Blob(role, int(given.blobFileValue.offset))


def number_nodes(program: ExportedProgram) -> dict[int, str]:
    """Give every traced call a ``debug_handle``; return the path of the innermost calling module for each handle."""
    paths: dict[int, str] = {}
    for handle, node in enumerate(program.graph_module.graph.nodes):
        if node.op == "call_function":
            node.meta["debug_handle"] = handle
            callers = list(node.meta.get("nn_module_stack", {}).values())
            paths[handle] = callers[-1][0] if callers else ""
    return paths


def operation_modules(model: Any, paths: Mapping[int, str]) -> dict[str, str]:
    """Map the first output of each operation of a converted model, also of constants, to its module path."""
    handles = model._mil_program.construct_debug_handle_to_ops_mapping()
    return {
        operation[-1]["Output"]: paths[handle]
        for handle, operations in handles.items()
        if handle in paths
        for operation in operations
    }


def write_modules(spec: Any, modules: Mapping[str, str]) -> None:
    """Write the module paths of the operations of ``spec`` to its metadata; ``modules``: name of a value → path."""
    grouped: dict[str, list[str]] = {}
    for op in main_operations(spec):
        if op.type != "const" and op.outputs and op.outputs[0].name in modules:
            grouped.setdefault(modules[op.outputs[0].name], []).append(op.outputs[0].name)
    if grouped:
        spec.description.metadata.userDefined[KEY] = json.dumps(grouped, sort_keys=True, separators=(",", ":"))


def read_modules(spec: Any) -> dict[str, str]:
    """Map the name of each output of each operation to its module path, or to "" if it is not recorded.

    Packages of other tools, and those with a damaged map, record no module paths.
    """
    try:
        form = _FORM.validate_json(spec.description.metadata.userDefined.get(KEY, "{}"))
    except ValidationError:
        form = {}
    known = {name: path for path, names in form.items() for name in names}
    operations = [op for op in main_operations(spec) if op.type != "const" and op.outputs]
    found: dict[str, str | None] = {}
    for op in operations:
        path = _first(known.get(op.outputs[0].name), *(found.get(item.name) for item in operands_of(op)))
        found |= {output.name: path for output in op.outputs}
    for op in reversed(operations):
        path = found[op.outputs[0].name]
        for item in operands_of(op):
            if item.name in found:
                found[item.name] = _first(found[item.name], path)
    return {name: path or "" for name, path in found.items()}


def _first(*paths: str | None) -> str | None:
    return next((path for path in paths if path is not None), None)
