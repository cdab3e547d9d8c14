"""Every Resize says which region it resizes, though it is all of the input.

    Resize(x, —, scales) → Resize(x, region, scales)        region = [0, 0, 0, 0, 1, 1, 1, 1]

The standard makes the region optional and ignores it in all modes but one. onnxruntime's check of mobile usability
takes a missing input for one of unknown shape, and tells people to keep such a graph off Core ML.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

NAME: Final = "resized_region"
_REGION: Final = 1


def name_regions(graph: ir.Graph) -> None:
    """Give each Resize of a 4-D value its region, one constant for all, in place."""
    nameless = [node for node in graph if node.op_type == "Resize" and node.inputs[_REGION] is None]
    if not nameless:
        return
    whole = ir.tensor(np.array([0.0] * 4 + [1.0] * 4, np.float32), name=NAME)
    region = ir.Value(name=NAME, const_value=whole, type=ir.TensorType(whole.dtype), shape=ir.Shape([8]))
    graph.register_initializer(region)
    for node in nameless:
        node.replace_input_with(_REGION, region)
