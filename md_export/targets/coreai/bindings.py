"""The only imports of Apple's compiler bindings, because their API is not public yet (coreai-core 1.0.0b3).

A program is MLIR: a graph ``main`` of operations, and one private graph for each composite (such as a norm) that
``main`` invokes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import coreai.authoring
from coreai._compiler import ir
from coreai._compiler._mlir_libs._coreaiIR._bindings.compiler import copy_constant_value_to_array
from coreai._compiler._mlir_libs._coreaiIR._bindings.mlir import (
    get_source_info,
    set_block_arg_location,
    set_op_location,
)
from coreai._compiler.dialects import coreai as dialect

from md_export.errors import ConversionError, RuntimeFault, raised_as

# Import this first, because it and the dialects import each other.


# Errors of torch.export, the converter and the bindings for input that they do not support.
VENDOR_ERRORS: Final = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError, OSError)
AIModelAsset: Any = coreai.authoring.AIModelAsset
_PROGRAM, _HASH = "main.mlirb", "main.hash"
_MAGIC: Final = b"ML\xefR"
_PREFIXES: Final = ("coreai.decomposable.", "coreai.")

__all__ = ["copy_constant_value_to_array", "dialect", "ir"]
# The root module's path is empty, but file names must not be; the dash is the format's name for unknown.
_ROOT, _UNKNOWN = ".", "-"
_PLACE: Final = re.compile(r'loc\("([^"]*)":')


@contextlib.contextmanager
def converting(component: str, stage: str) -> Iterator[None]:
    """Run one stage of a conversion without the vendor's output.

    Raises:
        ConversionError: the vendor's code failed; the message names component and stage.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        then = "; rewrite the operation named here, or leave the component out with --component"
        with raised_as(ConversionError, f"{component}: Core AI {stage} failed", VENDOR_ERRORS, then):
            yield


def read_program(path: Path) -> Any:
    """Read the program of a saved asset, in a new context.

    Raises:
        RuntimeFault: it is not such an asset, or was altered; Apple's parser would end the process on altered bytes.
    """
    with raised_as(RuntimeFault, f"{path.name} is not a Core AI asset; export it again", VENDOR_ERRORS):
        _check_hash(path)
        return AIModelAsset.load(path).program


def _check_hash(path: Path) -> None:
    """Raise ValueError if the program is not the one that was saved."""
    program, hashed = path / _PROGRAM, path / _HASH
    if not program.is_file() or not hashed.is_file():
        raise ValueError(f"it has no {_PROGRAM} with its {_HASH}")
    with program.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{_PROGRAM} is not bytecode")
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").digest()
    if found != hashed.read_bytes():
        raise ValueError(f"{_PROGRAM} does not match {_HASH}")


def graphs(program: Any) -> list[Any]:
    """Return ``main`` and the graphs that it invokes, in the program's order."""
    found = [op.operation for op in program._module._mlir_module.body.operations]
    return [op for op in found if op.name == "coreai.graph"]


def name_of(graph: Any) -> str:
    """Return the name of a graph."""
    return str(ir.StringAttr(graph.attributes["sym_name"]).value)


def main_graph(program: Any) -> Any:
    """Return the graph that is executed, ``main``.

    Raises:
        RuntimeFault: the program has no such graph.
    """
    for graph in graphs(program):
        if name_of(graph) == "main":
            return graph
    raise RuntimeFault("the Core AI program has no function 'main'; export it again")


def operations(program: Any) -> list[Any]:
    """Return the operations of ``main``, in order of execution, its output last."""
    return [op.operation for op in main_graph(program).regions[0].blocks[0].operations]


def kind_of(op: Any) -> str:
    """Return the format's name of an operation; for an invocation the composite's name, such as ``group_norm``."""
    if op.name == "coreai.invoke":
        return callee_of(op).rpartition("_")[0]
    prefix = next((prefix for prefix in _PREFIXES if op.name.startswith(prefix)), "")
    return str(op.name).removeprefix(prefix)


def callee_of(op: Any) -> str:
    """Return the name of the graph that an invocation calls."""
    return str(op.attributes["callee"]).partition("@")[2].partition(">")[0].strip()


def name_places(program: Any, exported: Any) -> None:
    """Label every operation with the path of its torch module, and number the names of composites, in place.

    The converter writes this machine's source paths and stack traces instead, and random names for composites; both
    would make the bytes of two exports differ.

    Args:
        program: the converter's result in debug mode, which keeps the names of torch's nodes.
        exported: the torch program that was converted.
    """
    paths = {node.name: _module_of_node(node) for node in exported.graph.nodes}
    with program._module._mlir_module.context:
        for graph in graphs(program):
            _place(graph, paths)
            for op in graph.regions[0].blocks[0].operations:
                _place(op.operation, paths)
        set_op_location(program._module._mlir_module.operation, _location(_UNKNOWN))
        _name_graphs(program)


def module_of(op: Any) -> str | None:
    """Return the path of the torch module that an operation of a saved program computes; None if not recorded."""
    found = _PLACE.search(str(op.location))
    place = found.group(1) if found else _UNKNOWN
    return None if place in (_UNKNOWN, "") else "" if place == _ROOT else place


def _module_of_node(node: Any) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0] or _ROOT if stack else _UNKNOWN


def _place(op: Any, paths: dict[str, str]) -> None:
    names = [str(name) for source in get_source_info(op.location) for name in source.identifiers or ()]
    set_op_location(op, _location(next((paths[name] for name in names if name in paths), _UNKNOWN)))
    for region in op.regions:
        for argument in region.blocks[0].arguments:
            set_block_arg_location(argument, _location(_UNKNOWN))


def _location(place: str) -> Any:
    return ir.Location.file(place, 0, 0)


def _name_graphs(program: Any) -> None:
    """Rename ``group_norm_ijznxhtq`` to ``group_norm_0``, because the converter's suffix is random."""
    names: dict[str, str] = {}
    for graph in graphs(program):
        name = name_of(graph)
        if name != "main":
            names[name] = f"{name.rpartition('_')[0]}_{len(names)}"
            graph.attributes["sym_name"] = ir.StringAttr.get(names[name])
    for op in operations(program):
        if op.name == "coreai.invoke":
            text, name = str(op.attributes["callee"]), callee_of(op)
            op.attributes["callee"] = ir.Attribute.parse(text.replace(f"@{name}", f"@{names[name]}"))
