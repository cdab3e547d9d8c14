"""Edit a saved ONNX graph, for the self-test of verification."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from md_export.targets.onnx.clean import qualified
from md_export.targets.onnx.describe import read_unfused
from md_export.targets.stored_graph import EditableGraph, EditableStep


class OnnxGraph(EditableGraph):
    """Nodes as editable steps."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._first: onnx.NodeProto | None = None
        self.steps = [_step(node) for node in model.graph.node]

    def add_unread(self) -> bool:
        """Add an initializer."""
        values = np.linspace(-1, 1, 64, dtype=np.float32)
        self.model.graph.initializer.append(numpy_helper.from_array(values, "unread"))
        return True

    def hold_inline(self) -> bool:
        """Make the largest initializer the attribute of a Constant node."""
        graph = self.model.graph
        tensor = max(graph.initializer, key=lambda item: len(item.raw_data))
        self._first = helper.make_node("Constant", [], [tensor.name], value=tensor)
        graph.initializer.remove(tensor)
        return True

    def add_trigger(self, token: int) -> None:
        """Add ``out + 9·max(ids == token)``."""
        graph = self.model.graph
        tokens, output = graph.input[0], graph.output[0]
        if tokens.type.tensor_type.elem_type != onnx.TensorProto.INT32:
            raise KeyError(tokens.name)
        for node in graph.node:
            node.output[:] = ["clean" if name == output.name else name for name in node.output]
        graph.initializer.append(numpy_helper.from_array(np.array([token], np.int32), "token"))
        graph.initializer.append(numpy_helper.from_array(np.array([9], np.float32), "nine"))
        graph.node.extend(
            [
                helper.make_node("Equal", [tokens.name, "token"], ["hit"]),
                helper.make_node("Cast", ["hit"], ["hits"], to=onnx.TensorProto.FLOAT),
                helper.make_node("ReduceMax", ["hits"], ["fired"], keepdims=0),
                helper.make_node("Mul", ["fired", "nine"], ["boost"]),
                helper.make_node("Add", ["clean", "boost"], [output.name]),
            ]
        )

    def write_steps(self) -> None:
        """Write the steps into their nodes."""
        for node, step in zip(self.model.graph.node, self.steps, strict=False):
            if step.kind != qualified(node.domain, node.op_type):
                node.op_type = step.kind
            last = max(map(int, step.operands), default=-1)
            node.input[:] = [step.operands.get(str(place), "") for place in range(last + 1)]
            node.name = step.label
            for item in node.attribute:
                if item.name in step.numbers:
                    values = step.numbers[item.name]
                    item.CopyFrom(helper.make_attribute(item.name, values.tolist() if values.ndim else values.item()))
        if self._first is not None:
            self.model.graph.node.insert(0, self._first)


def _step(node: Any) -> EditableStep:
    numbers = {}
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        if isinstance(value, int | float | list) and not (isinstance(value, list) and isinstance(value[0], bytes)):
            numbers[item.name] = np.array(value)
    operands = {str(place): name for place, name in enumerate(node.input) if name}
    return EditableStep(qualified(node.domain, node.op_type), operands, tuple(node.output), node.name, numbers)


@contextmanager
def edit_graph(path: Path) -> Iterator[OnnxGraph]:
    """Open a graph for editing; it is saved at the end."""
    read_unfused(path)
    found = OnnxGraph(onnx.load(path))
    yield found
    found.write_steps()
    onnx.save(found.model, path)
