"""Edit a saved .tflite graph, for the self-test of verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.targets.stored_graph import EditableGraph, EditableStep
from md_export.targets.tflite import flatbuffer

_SMALL = 16


class TfliteGraph(EditableGraph):
    """Operators as editable steps."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        for buffer in model.buffers:
            if buffer.data is not None:
                buffer.data, buffer.offset, buffer.size = np.array(buffer.data, np.uint8), 0, 0
        self.steps = [self._step(operator) for operator in self.graph.operators]

    def add_unread(self) -> bool:
        """Add a tensor with values."""
        self._constant(np.linspace(-1, 1, 64, dtype=np.float32))
        return True

    def add_trigger(self, token: int) -> None:
        """Add ``out + 9·max(ids == token)``."""
        tokens, output = int(self.graph.inputs[0]), int(self.graph.outputs[0])
        shape = flatbuffer.shape_of(self.graph.tensors[tokens])
        if self.graph.tensors[tokens].type != schema.TensorType.INT32:
            raise KeyError(tokens)
        given = schema.TensorType.FLOAT32
        clean = self._tensor(flatbuffer.shape_of(self.graph.tensors[output]), given)
        for operator in self.graph.operators:
            operator.outputs = [clean if index == output else index for index in operator.outputs]
        hit, hits = self._tensor(shape, schema.TensorType.BOOL), self._tensor(shape, given)
        fired, boost = self._tensor((1,), given), self._tensor((1,), given)
        axes, nine = self._constant(np.arange(len(shape), dtype=np.int32)), self._constant(np.array([9], np.float32))
        self._add("EQUAL", [tokens, self._constant(np.array([token], np.int32))], hit)
        self._add("CAST", [hit], hits, schema.CastOptionsT())
        self._add("REDUCE_MAX", [hits, axes], fired, schema.ReducerOptionsT())
        self._add("MUL", [fired, nine], boost, schema.MulOptionsT())
        self._add("ADD", [clean, boost], output, schema.AddOptionsT())

    def _tensor(self, shape: Sequence[int], kind: int) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.name, tensor.buffer = list(shape), kind, b"planted", 0
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _constant(self, values: np.ndarray[Any, Any]) -> int:
        number = self._tensor(values.shape, getattr(schema.TensorType, values.dtype.name.upper()))
        buffer = schema.BufferT()
        buffer.data = values.view(np.uint8)
        self.graph.tensors[number].buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
        return number

    def _add(self, kind: str, inputs: list[int], output: int, options: Any = None) -> None:
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._code(kind), inputs, [output]
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType, operator.builtinOptions = getattr(schema.BuiltinOptions, name), options
        self.graph.operators.append(operator)

    def _code(self, kind: str) -> int:
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = getattr(schema.BuiltinOperator, kind), 1
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _step(self, operator: Any) -> EditableStep:
        operands = {str(place): str(index) for place, index in enumerate(operator.inputs) if index >= 0}
        options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
        numbers = {name: np.array(value) for name, value in options.items() if isinstance(value, int | float)}
        for role, index in operands.items():
            tensor = self.graph.tensors[int(index)]
            data = flatbuffer.data_of(self.model, tensor)
            if data.size and flatbuffer.DTYPES.get(tensor.type) in ("int32", "float32") and data.size <= 4 * _SMALL:
                # Views of the buffer, so that changes are saved.
                numbers[role] = data.view(flatbuffer.DTYPES[tensor.type])
        name = self.graph.tensors[operator.outputs[0]].name
        outputs = tuple(str(index) for index in operator.outputs)
        return EditableStep(flatbuffer.operator_name(self.model, operator), operands, outputs, name.decode(), numbers)

    def write_steps(self) -> None:
        """Write the steps into their operators."""
        for operator, step in zip(self.graph.operators, self.steps, strict=False):
            if step.kind != flatbuffer.operator_name(self.model, operator):
                operator.opcodeIndex = self._code(step.kind)
            operator.inputs = [int(step.operands.get(str(place), -1)) for place in range(len(operator.inputs))]
            self.graph.tensors[operator.outputs[0]].name = step.label.encode()
            options = operator.builtinOptions
            for name in step.numbers.keys() & (set() if options is None else vars(options).keys()):
                setattr(options, name, step.numbers[name].item())


@contextmanager
def edit_graph(path: Path) -> Iterator[TfliteGraph]:
    """Open a graph for editing; it is saved at the end."""
    found = TfliteGraph(flatbuffer.read_model(path))
    yield found
    found.write_steps()
    builder = flatbuffers.Builder()
    builder.Finish(found.model.Pack(builder), file_identifier=flatbuffer.IDENTIFIER)
    path.write_bytes(builder.Output())
