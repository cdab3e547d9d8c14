"""A weight that is a part of a larger constant becomes a constant of its own.

    Conv(x, Gather(stack[4, out, in, k, k], 2)) → Conv(x, part[out, in, k, k])
    Conv(x, Split(whole[out, in, k, k])[0])     → Conv(x, part[out, in/2, k, k])

The exporter leaves large constants as they are; but only what is a constant can be stored otherwise.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from md_export.targets.onnx.embedding import initializer

_ANY_SIZE: Final = 1 << 40


def part_weights(model: ir.Model) -> None:
    """Take parts of constants out of them, in place; all parts being used, the bytes stay as many."""
    fold_constants(model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE, should_fold=_looks_up)
    for node in list(model.graph):
        whole = node.inputs[0] if node.op_type == "Split" else None
        if whole is not None and whole.const_value is not None:
            _cut(model.graph, node, whole, whole.const_value.numpy())


def _looks_up(node: ir.Node) -> bool:
    """What is no constant for all that, such as rows by token, is not folded."""
    whole = node.inputs[0] if node.op_type == "Gather" else None
    return whole is not None and whole.is_initializer()


def _cut(graph: ir.Graph, node: ir.Node, whole: ir.Value, values: np.ndarray) -> None:
    """onnxscript folds no operator of several results."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    first = 0
    for number, part in enumerate(node.outputs):
        if part.shape is None:
            raise ValueError(f"{part.name} has no shape; export with static shapes")
        size = int(part.shape.numpy()[axis])
        cut = np.ascontiguousarray(np.take(values, range(first, first + size), axis))
        part.replace_all_uses_with(initializer(graph, f"{whole.name}.{number}", cut))
        first += size
    graph.remove(node, safe=True)
    if not whole.uses():
        del graph.initializers[whole.name or ""]
