"""All content of a saved package: operations with their arguments, constants, inputs, outputs, versions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from md_export import mil
from md_export.errors import ArtifactError, RuntimeFault
from md_export.mil.graph import Graph, Op, Ref
from md_export.mil.values import Value
from md_export.targets.coreml.package import read_modules, read_spec
from md_export.targets.stored_graph import Step, StoredConstant, StoredGraph


def graph(path: Path) -> StoredGraph:
    """Read every operation with its recorded torch module.

    Raises:
        RuntimeFault: the package cannot be read, or our runtime does not support the program.
    """
    try:
        spec = read_spec(path)
        modules = read_modules(spec)
    except ArtifactError as error:
        raise RuntimeFault(str(error)) from error
    found = mil.load(path).graph
    steps = tuple(_step(op, modules) for op in found.ops if op.outputs)
    named = {name: (str(found.types[name]), value) for name, value in found.constants.items()}
    inline = {name: (_type(value), value) for op in found.ops for name, value in _inline(op)}
    constants = {
        name: StoredConstant(words, partial(_numpy, value)) for name, (words, value) in (named | inline).items()
    }
    return StoredGraph(
        {item.name: f"{item.name} {item.type}" for item in found.inputs},
        {f"{name} {found.types[name]}": name for name in found.outputs},
        steps,
        constants,
        _rest(spec, found),
    )


def _rest(spec: Any, found: Graph) -> str:
    """Return description and versions as text; operations and metadata are compared separately."""
    for block in spec.mlProgram.functions["main"].block_specializations.values():
        block.ClearField("operations")
    spec.description.ClearField("metadata")
    others = [op.kind for op in found.ops if not op.outputs]
    return f"{spec}{others}"


def _inline(op: Op) -> Iterator[tuple[str, Value]]:
    """Yield the constants inside an operation, named after their role."""
    for role, place, item in _arguments(op):
        if not isinstance(item, Ref):
            yield f"{_name(op)}/{role}/{place}", item


def _arguments(op: Op) -> list[tuple[str, int, Ref | Value]]:
    return [(role, place, item) for role in sorted(op.args) for place, item in enumerate(op.args[role])]


def _name(op: Op) -> str:
    return op.outputs[0].name if op.outputs else op.kind


def _step(op: Op, modules: dict[str, str]) -> Step:
    arguments = _arguments(op)
    names = [item.name if isinstance(item, Ref) else f"{_name(op)}/{role}/{place}" for role, place, item in arguments]
    settings = {
        "operands": " ".join(role for role, _, _ in arguments),
        "gives": ", ".join(str(item.type) for item in op.outputs),
    }
    made = tuple(item.name for item in op.outputs)
    return Step(op.kind, (modules.get(made[0], ""),), tuple(names), made, settings)


def _type(value: Value) -> str:
    return "string" if isinstance(value, str) else f"{value.dtype}{list(value.shape)}"


def _numpy(value: Value) -> np.ndarray[Any, Any]:
    if isinstance(value, torch.Tensor):
        return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    return np.asarray(value)
