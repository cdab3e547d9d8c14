"""What happens inside a saved asset: its operations by torch module, and the values between them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.spec.tensors import Array, Arrays
from md_export.targets.contract import Step
from md_export.targets.coreai.bindings import dialect, ir, kind_of, main_graph, operations, read_program
from md_export.targets.coreai.constants import is_constant
from md_export.targets.coreai.places import module_of
from md_export.targets.coreai.run import load
from md_export.targets.coreai.save import write_program

_NAME: Final = "coreai.name"
OUTPUT: Final = "coreai.output"


def steps(path: Path) -> tuple[Step, ...]:
    """Every operation with the torch module that the file tells.

    Raises:
        RuntimeFault: no Core AI asset.
    """
    program = read_program(path)
    names = names_of(program)
    found = []
    for op in operations(program):
        if not is_constant(op) and op.name != OUTPUT:
            place, given = module_of(op), [names[value] for value in op.operands]
            modules = () if place is None else (place,)
            found.append(Step(kind_of(op), modules, tuple(given), tuple(names[value] for value in op.results)))
    return tuple(found)


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute a copy of the asset whose function gives the named values too, in float32.

    Raises:
        RuntimeFault: the runtime refuses it or the inputs.
    """
    with watched(path, names) as run:
        return run(inputs)


@contextmanager
def watched(path: Path, names: Collection[str]) -> Iterator[Callable[[Arrays], dict[str, Array]]]:
    """As :func:`values`, for several runs."""
    program = read_program(path)
    known = {name: value for value, name in names_of(program).items()}
    given = {name: str(number) for number, name in enumerate(names)}
    _give(program, {given[name]: known[name] for name in names})
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        copy = Path(scratch) / path.name
        write_program(program, copy, {})
        runner = load(copy)

        def run(inputs: Arrays) -> dict[str, Array]:
            made = runner.run(inputs)
            return {name: made[given[name]].astype(np.float32) for name in names}

        yield run


def names_of(program: Any) -> dict[Any, str]:
    """Of every value of ``main``, by its place in the program; a saved program has the same."""
    block = main_graph(program).regions[0].blocks[0]
    found = {argument: f"%input{number}" for number, argument in enumerate(block.arguments)}
    for number, op in enumerate(operations(program)):
        found |= {value: f"%{number}#{index}" if index else f"%{number}" for index, value in enumerate(op.results)}
    return found


def _give(program: Any, wanted: Mapping[str, Any]) -> None:
    """Make ``main`` return these values, in place of its outputs."""
    graph, output = main_graph(program), operations(program)[-1]
    with program._module._mlir_module.context, ir.Location.unknown():
        kind = ir.FunctionType(ir.TypeAttr(graph.attributes["function_type"]).value)
        made = ir.FunctionType.get(list(kind.inputs), [value.type for value in wanted.values()])
        labels = [ir.DictAttr.get({_NAME: ir.StringAttr.get(name)}) for name in wanted]
        graph.attributes["function_type"] = ir.TypeAttr.get(made)
        graph.attributes["res_attrs"] = ir.ArrayAttr.get(labels)
        with ir.InsertionPoint(output):
            dialect.output(list(wanted.values()))
        output.erase()
