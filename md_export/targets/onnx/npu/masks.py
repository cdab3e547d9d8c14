"""Attention masks that leave room for the scores.

    Softmax(Add(scores, mask))        mask of 0 and -10000 → 0 and -(range of the scores + 16)

In integers a sum has one step for all of its values: with -10000 among them, 16 bits leave 0.15 for a step. What is
masked still weighs at most e^-16, 1e-7, of what is not.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from onnxruntime.quantization.calibrate import TensorData, TensorsData

from md_export.targets.onnx.embedding import initializer

_MASKED: Final = -1000.0
_ROOM: Final = 16.0


def soften_masks(model: ir.Model, ranges: TensorsData) -> None:
    """Give each sum of scores and mask a mask of its own, in place, and its range to ``ranges``."""
    for node in model.graph:
        if node.op_type != "Softmax" or node.inputs[0] is None:
            continue
        total = node.inputs[0].producer()
        if total is not None and total.op_type == "Add":
            _soften(model.graph, total, ranges)


def _soften(graph: ir.Graph, total: ir.Node, ranges: TensorsData) -> None:
    for position, mask in enumerate(total.inputs):
        scores = total.inputs[1 - position]
        if mask is None or mask.const_value is None or scores is None:
            continue
        values = mask.const_value.numpy()
        if values.min() > _MASKED or scores.name not in ranges.data:
            continue
        least, most = (float(end) for end in ranges[scores.name].range_value)
        floor = -(most - least + _ROOM)
        softer = np.where(values <= _MASKED, floor, values).astype(np.float32)
        total.replace_input_with(position, initializer(graph, f"{total.name}.mask", softer))
        if not mask.uses():
            del graph.initializers[mask.name or ""]
        made = total.outputs[0].name or ""
        ranges.data[made] = TensorData(lowest=np.float32(least + floor), highest=np.float32(most))
