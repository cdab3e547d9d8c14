"""Edit a saved Core AI program, for the self-test of verification."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.targets.coreai import bindings
from md_export.targets.coreai.bindings import dialect, ir
from md_export.targets.coreai.constants import is_constant, values_of
from md_export.targets.coreai.run import OUTPUT, names_of
from md_export.targets.coreai.save import read_custom, write_program
from md_export.targets.stored_graph import EditableGraph, EditableStep

_SMALL: Final = 16


class CoreaiGraph(EditableGraph):
    """Operations of ``main`` as editable steps.

    No unread constant can be added: Apple's library drops such constants when it saves.
    """

    def __init__(self, program: Any) -> None:
        self.program = program
        names = names_of(program)
        self._values = {name: value for value, name in names.items()}
        operations = bindings.operations(program)
        self._constants = {names[op.results[0]]: op for op in operations if is_constant(op)}
        self._numbers = {
            name: np.array(values_of(op)).reshape(-1)
            for name, op in self._constants.items()
            if np.prod(op.results[0].type.shape) <= _SMALL
        }
        self._output = operations[-1]
        self._opened = [op for op in operations if not is_constant(op) and op.name != OUTPUT]
        self.steps = [self._step(op, names) for op in self._opened]

    def _step(self, op: Any, names: dict[Any, str]) -> EditableStep:
        operands = {str(place): names[value] for place, value in enumerate(op.operands)}
        numbers = {role: self._numbers[name].copy() for role, name in operands.items() if name in self._numbers}
        outputs = tuple(names[value] for value in op.results)
        return EditableStep(bindings.kind_of(op), operands, outputs, bindings.module_of(op) or "", numbers)

    def add_trigger(self, token: int) -> None:
        """Add ``out + 9·max(ids == token)``."""
        tokens = bindings.main_graph(self.program).regions[0].blocks[0].arguments[0]
        if str(tokens.type.element_type) != "si32":
            raise KeyError(token)
        with self.program._module._mlir_module.context, ir.Location.unknown(), ir.InsertionPoint(self._output):
            hit = dialect.broadcasting_equal(tokens, np.array([token], np.int32))
            fired = dialect.reduce_max(dialect.cast(hit, np.float32), np.arange(len(tokens.type.shape), dtype=np.int32))
            boost = dialect.broadcasting_mul(fired, np.array([9], np.float32))
            self._output.operands[0] = dialect.broadcasting_add(self._output.operands[0], boost)

    def write_steps(self) -> None:
        """Write the steps back to their operations; a step with another kind becomes a new operation."""
        with self.program._module._mlir_module.context, ir.Location.unknown():
            pairs = list(zip(self._opened, self.steps, strict=True))
            for op, step in pairs:
                for role, name in step.operands.items():
                    if op.operands[int(role)] != self._values[name]:
                        self._take(op, int(role), self._values[name])
                for role, values in step.numbers.items():
                    if role in step.operands:
                        self._write_number(step.operands[role], values)
            for op, step in pairs:
                if step.kind != bindings.kind_of(op):
                    _replace(op, step.kind)

    def _take(self, op: Any, place: int, value: Any) -> None:
        """Replace an operand of an operation; if an operation on constants makes it, move that one in front."""
        maker = value.owner
        if not isinstance(maker, ir.Block) and not maker.is_before_in_block(op):
            maker.move_before(op)
        op.operands[place] = value

    def _write_number(self, name: str, values: Any) -> None:
        """Write a constant if this step changed it; several steps may share one."""
        op = self._constants.get(name)
        if op is not None and not np.array_equal(self._numbers[name], values):
            kind = op.results[0].type
            # As text, because Apple's verifier ends the process if settings are stored as a blob.
            op.attributes["value"] = ir.Attribute.parse(f"dense<{values.reshape(kind.shape).tolist()}> : {kind}")


def _replace(op: Any, kind: str) -> None:
    made = ir.Operation.create(
        f"coreai.{kind}",
        results=[value.type for value in op.results],
        operands=list(op.operands),
        loc=op.location,
        ip=ir.InsertionPoint(op),
    )
    for old, new in zip(op.results, made.results, strict=True):
        old.replace_all_uses_with(new)
    op.erase()


@contextmanager
def edit_graph(path: Path) -> Iterator[CoreaiGraph]:
    """Open an asset's program for editing; it is saved at the end, with its metadata unchanged."""
    found, custom = CoreaiGraph(bindings.read_program(path)), read_custom(path)
    yield found
    found.write_steps()
    shutil.rmtree(path)
    write_program(found.program, path, custom)
