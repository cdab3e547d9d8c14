"""Which torch module each operation of a program came from: found while lowering, kept inside the package.

coremltools carries the ``debug_handle`` of a traced node through every pass, so what a pass makes of a node has the
node's handle: casts of its operands, a layer norm fused from eleven operations, a linear under a new name. What later
tools insert has none; it inherits from the operation that it reads, or else from the one that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from torch.export import ExportedProgram

from md_export.targets.coreml.package import main_operations

# In the package's user-defined metadata; JSON: module path → names of the operations' first outputs.
KEY: Final = "md_export.modules"
_FORM: Final = TypeAdapter(dict[str, list[str]])


def number_nodes(program: ExportedProgram) -> dict[int, str]:
    """Give every traced call a ``debug_handle``; returns handle → path of the innermost module that makes the call."""
    paths: dict[int, str] = {}
    for handle, node in enumerate(program.graph_module.graph.nodes):
        if node.op == "call_function":
            node.meta["debug_handle"] = handle
            callers = list(node.meta.get("nn_module_stack", {}).values())
            paths[handle] = callers[-1][0] if callers else ""
    return paths


def operation_modules(model: Any, paths: Mapping[int, str]) -> dict[str, str]:
    """First output of each operation of a converted model → module path, constants included."""
    handles = model._mil_program.construct_debug_handle_to_ops_mapping()
    return {
        operation[-1]["Output"]: paths[handle]
        for handle, operations in handles.items()
        if handle in paths
        for operation in operations
    }


def write_modules(spec: Any, modules: Mapping[str, str]) -> None:
    """Put the paths of the operations that ``spec`` has into its metadata; ``modules``: name of a value → path."""
    grouped: dict[str, list[str]] = {}
    for op in main_operations(spec):
        if op.type != "const" and op.outputs and op.outputs[0].name in modules:
            grouped.setdefault(modules[op.outputs[0].name], []).append(op.outputs[0].name)
    if grouped:
        spec.description.metadata.userDefined[KEY] = json.dumps(grouped, sort_keys=True, separators=(",", ":"))


def read_modules(spec: Any) -> dict[str, str]:
    """Name of each output of each operation → module path; "" where the package does not tell.

    A package by another tool, or one whose map was damaged, tells nothing.
    """
    try:
        form = _FORM.validate_json(spec.description.metadata.userDefined.get(KEY, "{}"))
    except ValidationError:
        form = {}
    known = {name: path for path, names in form.items() for name in names}
    operations = [op for op in main_operations(spec) if op.type != "const" and op.outputs]
    found: dict[str, str | None] = {}
    for op in operations:
        path = known.get(op.outputs[0].name)
        found |= dict.fromkeys(_outputs(op), _first(path, *(found.get(name) for name in _inputs(op))))
    for op in reversed(operations):
        path = found[op.outputs[0].name]
        for name in _inputs(op):
            if name in found:
                found[name] = _first(found[name], path)
    return {name: path or "" for name, path in found.items()}


def _outputs(op: Any) -> list[str]:
    return [output.name for output in op.outputs]


def _inputs(op: Any) -> list[str]:
    return [argument.name for value in op.inputs.values() for argument in value.arguments if argument.name]


def _first(*paths: str | None) -> str | None:
    return next((path for path in paths if path is not None), None)
