"""Where an operation comes from, as the file tells: the path of its torch module stands for a source file's name.

The converter writes this machine's source paths and stack traces instead, and random names for composites; both would
make the bytes of two exports differ.
"""

from __future__ import annotations

import re
from typing import Any, Final

from md_export.targets.coreai.bindings import (
    callee_of,
    get_source_info,
    graphs,
    ir,
    name_of,
    operations,
    set_block_arg_location,
    set_op_location,
)

# The root module's path is empty, which no file name may be; the dash is the format's own word for unknown.
_ROOT, _UNKNOWN = ".", "-"
_PLACE: Final = re.compile(r'loc\("([^"]*)":')


def name_places(program: Any, exported: Any) -> None:
    """Give every operation the path of its torch module, and composites names by number, in place.

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
