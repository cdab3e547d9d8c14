"""All content of a saved asset: operations with their attributes, constants, inputs, outputs, composites."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from md_export.errors import RuntimeFault, raised_as
from md_export.targets.coreai import bindings
from md_export.targets.coreai.constants import is_constant, values_of
from md_export.targets.coreai.run import OUTPUT, names_of
from md_export.targets.stored_graph import Step, StoredConstant, StoredGraph


def graph(path: Path) -> StoredGraph:
    """Read every operation of ``main`` with its recorded torch module; composites are part of ``rest`` as text.

    Raises:
        RuntimeFault: it is not a Core AI asset.
    """
    program = bindings.read_program(path)
    with raised_as(RuntimeFault, f"{path.name} cannot be read", bindings.VENDOR_ERRORS):
        return _graph(program)


def _graph(program: Any) -> StoredGraph:
    names, main = names_of(program), bindings.main_graph(program)
    operations = bindings.operations(program)
    given = main.regions[0].blocks[0].arguments
    returned = [value for op in operations if op.name == OUTPUT for value in op.operands]
    others = [str(one.get_asm(enable_debug_info=False)) for one in bindings.graphs(program) if one != main]
    return StoredGraph(
        {names[value]: f"input {number}" for number, value in enumerate(given)},
        {f"output {number}": names[value] for number, value in enumerate(returned)},
        tuple(_step(op, names) for op in operations if not is_constant(op) and op.name != OUTPUT),
        {
            names[op.results[0]]: StoredConstant(str(op.results[0].type), partial(_read, program, op))
            for op in filter(is_constant, operations)
        },
        "\n".join((str(_attributes(main)), *others)),
    )


def _read(program: Any, op: Any) -> Any:
    """Read a constant; ``program`` must be alive, because an operation does not keep it, and the library crashes."""
    del program
    with raised_as(RuntimeFault, "a constant cannot be read", bindings.VENDOR_ERRORS, then="; export it again"):
        return values_of(op)


def _step(op: Any, names: dict[Any, str]) -> Step:
    place = bindings.module_of(op)
    settings = {**_attributes(op), "gives": ", ".join(str(value.type) for value in op.results)}
    return Step(
        bindings.kind_of(op),
        () if place is None else (place,),
        tuple(names[value] for value in op.operands),
        tuple(names[value] for value in op.results),
        settings,
    )


def _attributes(op: Any) -> dict[str, str]:
    return {item.name: str(item.attr) for item in op.attributes}
