"""Edit a saved ML program, for the self-test of verification."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.targets.coreml.package import KEY, MODEL, main_operations, operands_of, read_modules, read_spec
from md_export.targets.stored_graph import EditableGraph, EditableStep

# MIL.proto's type numbers of the values that the self-test writes, by numpy's names of their fields.
_TYPES: Final = {"bool": 1, "float16": 10, "float32": 11, "int32": 23}
_FIELDS: Final = {"bools": "bool", "floats": "float32", "ints": "int32", "bytes": "float16"}


class CoremlGraph(EditableGraph):
    """Operations as editable steps."""

    def __init__(self, spec: Any) -> None:
        self.spec, self.operations = spec, main_operations(spec)
        self._modules = read_modules(spec)
        self._constants = {op.outputs[0].name: op for op in self.operations if op.type == "const"}
        found = {name: self._immediate(name) for name in self._constants}
        self._numbers = {name: values for name, values in found.items() if values is not None}
        self._opened = [op for op in self.operations if op.type != "const" and op.outputs]
        self.steps = [self._step(op) for op in self._opened]

    def add_unread(self) -> bool:
        """Add a ``const``."""
        self._constant("unread", np.linspace(-1, 1, 64, dtype=np.float32))
        return True

    def add_trigger(self, token: int) -> None:
        """Add ``out + 9·max(ids == token)``."""
        function = self.spec.mlProgram.functions["main"]
        block = function.block_specializations[function.opset]
        tokens, output = function.inputs[0], block.outputs[0]
        made = next(item for op in self.operations for item in op.outputs if item.name == output)
        sizes = [int(one.constant.size) for one in tokens.type.tensorType.dimensions]
        # Apple's Swift package passes ids as floats.
        dtype = next((name for name in ("int32", "float32") if tokens.type.tensorType.dataType == _TYPES[name]), None)
        if dtype is None or len(sizes) != len(["batch", "tokens"]):
            raise KeyError(tokens.name)
        for op in self.operations:
            for item in op.outputs:
                item.name = "clean" if item.name == output else item.name
        self._constant("token", np.array(token, dtype))
        self._constant("nine", np.array(9, np.float32))
        self._constant("fp32", "fp32")
        self._add("equal", {"x": tokens.name, "y": "token"}, "hit", "bool", sizes)
        self._add("cast", {"x": "hit", "dtype": "fp32"}, "hits", "float32", sizes)
        self._constant("axes", np.arange(len(sizes), dtype=np.int32))
        self._constant("keep", np.array(False))
        self._add("reduce_max", {"x": "hits", "axes": "axes", "keep_dims": "keep"}, "fired", "float32", [])
        self._add("mul", {"x": "fired", "y": "nine"}, "boost", "float32", [])
        shape = [int(one.constant.size) for one in made.type.tensorType.dimensions]
        self._add("add", {"x": "clean", "y": "boost"}, output, "float32", shape)

    def _add(self, kind: str, inputs: dict[str, str], output: str, dtype: str, sizes: list[int]) -> None:
        op = self.operations.add()
        op.type = kind
        for role, name in inputs.items():
            op.inputs[role].arguments.add().name = name
        self._declare(op.outputs.add(), output, dtype, sizes)

    @staticmethod
    def _declare(item: Any, name: str, dtype: str, sizes: list[int]) -> None:
        item.name = name
        tensor = item.type.tensorType
        tensor.dataType, tensor.rank = _TYPES.get(dtype, 2), len(sizes)
        for size in sizes:
            tensor.dimensions.add().constant.size = size

    def _constant(self, name: str, value: Any) -> None:
        """Insert a constant before all operations, because a value must precede its readers."""
        op = type(self.operations[0])()
        op.type = "const"
        dtype, sizes = ("string", []) if isinstance(value, str) else (value.dtype.name, list(value.shape))
        self._declare(op.outputs.add(), name, dtype, sizes)
        held = op.attributes["val"]
        held.type.CopyFrom(op.outputs[0].type)
        tensor = held.immediateValue.tensor
        if isinstance(value, str):
            tensor.strings.values.append(value)
        else:
            field = next(field for field, kind in _FIELDS.items() if kind == dtype)
            getattr(tensor, field).values.extend(value.reshape(-1).tolist())
        self.operations.insert(0, op)

    def _step(self, op: Any) -> EditableStep:
        operands, numbers = {}, {}
        for item in operands_of(op):
            if item.role in op.inputs and item.place == 0 and item.name:
                operands[item.role] = item.name
                if item.name in self._numbers:
                    numbers[item.role] = self._numbers[item.name].copy()
        made = op.outputs[0].name
        return EditableStep(op.type, operands, tuple(one.name for one in op.outputs), self._modules[made], numbers)

    def _immediate(self, name: str) -> Any:
        """Return numbers that are stored in the program itself; None for other values."""
        held = self._constants[name].attributes["val"]
        if not held.HasField("immediateValue"):
            return None
        tensor = held.immediateValue.tensor
        field = tensor.WhichOneof("value")
        if field not in _FIELDS:
            return None
        values = getattr(tensor, field).values
        return np.frombuffer(values, np.float16).copy() if field == "bytes" else np.array(values, _FIELDS[field])

    def _write_number(self, name: str, values: Any) -> None:
        tensor = self._constants[name].attributes["val"].immediateValue.tensor
        field = tensor.WhichOneof("value")
        if field == "bytes":
            tensor.bytes.values = values.tobytes()
        else:
            getattr(tensor, field).values[:] = values.tolist()

    def write_steps(self) -> None:
        """Write the steps into their operations, and their labels into the map of modules."""
        for op, step in zip(self._opened, self.steps, strict=True):
            op.type = step.kind
            for role in list(op.inputs):
                arguments = op.inputs[role].arguments
                if role in step.operands:
                    for name in (step.operands[role],) if arguments[0].name else ():
                        arguments[0].name = name
                elif arguments[0].name:
                    del op.inputs[role]
            for role, values in step.numbers.items():
                # Several steps may share a constant: only the step that changed it writes it.
                name = step.operands.get(role, "")
                if name in self._numbers and not np.array_equal(self._numbers[name], values):
                    self._write_number(name, values)
        # Operations that decode weights read only constants, so they can move in front of an edited reader.
        ordered = sorted(self.operations, key=lambda op: not op.type.startswith("const"))
        copies = [type(op).FromString(op.SerializeToString()) for op in ordered]
        del self.operations[:]
        self.operations.extend(copies)
        labels: dict[str, list[str]] = {}
        for step in self.steps:
            labels.setdefault(step.label, []).append(step.outputs[0])
        self.spec.description.metadata.userDefined[KEY] = json.dumps(labels, sort_keys=True)


@contextmanager
def edit_graph(path: Path) -> Iterator[CoremlGraph]:
    """Open a package's program for editing; it is saved at the end."""
    found = CoremlGraph(read_spec(path))
    yield found
    found.write_steps()
    (path / MODEL).write_bytes(found.spec.SerializeToString(deterministic=True))
