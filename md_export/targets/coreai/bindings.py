"""Apple's compiler bindings behind one door: what they offer has no public name yet (coreai-core 1.0.0b3).

A program is MLIR: a graph ``main`` of operations, and one private graph for each composite (a norm), which ``main``
invokes.
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

# First: the dialects import it, and it them.


# What torch.export, the converter and the bindings raise on what they cannot take.
VENDOR_ERRORS: Final = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError, OSError)
AIModelAsset: Any = coreai.authoring.AIModelAsset
_PROGRAM, _HASH = "main.mlirb", "main.hash"
_MAGIC: Final = b"ML\xefR"
_PREFIXES: Final = ("coreai.decomposable.", "coreai.")

__all__ = ["copy_constant_value_to_array", "dialect", "ir"]
# The root module's path is empty, which no file name may be; the dash is the format's own word for unknown.
_ROOT, _UNKNOWN = ".", "-"
_PLACE: Final = re.compile(r'loc\("([^"]*)":')


@contextlib.contextmanager
def converting(component: str, stage: str) -> Iterator[None]:
    """Run one stage of a conversion without the vendor's chatter.

    Raises:
        ConversionError: the vendor's code failed; the message names component and stage.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        then = "; rewrite the operation named here, or leave the component out with --component"
        with raised_as(ConversionError, f"{component}: Core AI {stage} failed", VENDOR_ERRORS, then):
            yield


def read_program(path: Path) -> Any:
    """The program of a saved asset, in a separate context.

    Raises:
        RuntimeFault: it is no such asset, or was altered: Apple's parser ends the process where bytes are wrong.
    """
    with raised_as(RuntimeFault, f"{path.name} is no Core AI asset; export it again", VENDOR_ERRORS):
        _check_hash(path)
        return AIModelAsset.load(path).program


def _check_hash(path: Path) -> None:
    """ValueError where the program is not the one that was saved."""
    program, hashed = path / _PROGRAM, path / _HASH
    if not program.is_file() or not hashed.is_file():
        raise ValueError(f"it holds no {_PROGRAM} with its {_HASH}")
    with program.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{_PROGRAM} is no bytecode")
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").digest()
    if found != hashed.read_bytes():
        raise ValueError(f"{_PROGRAM} is not what {_HASH} says")


def graphs(program: Any) -> list[Any]:
    """``main`` and what it invokes, in the program's order."""
    found = [op.operation for op in program._module._mlir_module.body.operations]
    return [op for op in found if op.name == "coreai.graph"]


def name_of(graph: Any) -> str:
    """Return the name of a graph."""
    return str(ir.StringAttr(graph.attributes["sym_name"]).value)


def main_graph(program: Any) -> Any:
    """The graph that is executed.

    Raises:
        RuntimeFault: the program has none of that name.
    """
    for graph in graphs(program):
        if name_of(graph) == "main":
            return graph
    raise RuntimeFault("the Core AI program has no function 'main'; export it again")


def operations(program: Any) -> list[Any]:
    """Return the operations of ``main``, in order of execution, its output last."""
    return [op.operation for op in main_graph(program).regions[0].blocks[0].operations]


def kind_of(op: Any) -> str:
    """The format's name of an operation; of an invocation the composite's, such as ``group_norm``."""
    if op.name == "coreai.invoke":
        return callee_of(op).rpartition("_")[0]
    prefix = next((prefix for prefix in _PREFIXES if op.name.startswith(prefix)), "")
    return str(op.name).removeprefix(prefix)


def callee_of(op: Any) -> str:
    """Name of the graph that an invocation calls."""
    return str(op.attributes["callee"]).partition("@")[2].partition(">")[0].strip()


def name_places(program: Any, exported: Any) -> None:
    """Give every operation the path of its torch module, and composites names by number, in place.

    The converter writes this machine's source paths and stack traces instead, and random names for composites; both
    would make the bytes of two exports differ.

    Args:
        program: as the converter made it in debug mode, which keeps the names of torch's nodes.
        exported: torch's program that it was made of.
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
    """Path of the torch module that an operation of a saved program computes; None where the file does not tell."""
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
    """``group_norm_ijznxhtq`` → ``group_norm_0``: the converter draws the ending at random."""
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
