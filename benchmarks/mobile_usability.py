"""How onnxruntime would divide a graph between Core ML and the CPU, by onnxruntime's own check of mobile usability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnxruntime.tools.mobile_helpers.usability_checker import check_coreml_partitions

from md_export.errors import RuntimeFault, one_line
from md_export.targets.onnx.describe import read_graph

# In the check's own words: the newer kind of Core ML model, which onnxruntime makes of a partition where told so.
_MLPROGRAM: Final = "coreml_supported_mlprogram_ops.md"


@dataclass(frozen=True)
class Partitions:
    """Parts of a graph on an iPhone.

    Attributes:
        count: Core ML models that onnxruntime makes of it; each border is a copy and a wait.
        nodes: of the graph.
        left: names of the nodes that stay on the CPU.
    """

    count: int
    nodes: int
    left: tuple[str, ...]


def coreml_partitions(path: Path) -> Partitions:
    """Ask the check about a saved graph as it is; it looks at operators, shapes and ranks, and not at attributes.

    Raises:
        RuntimeFault: the file is no ONNX model, or its shapes contradict each other.
    """
    model = read_graph(path)
    try:
        shaped = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        found = check_coreml_partitions(shaped, True, _MLPROGRAM)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise RuntimeFault(f"{path.name}: its shapes cannot be inferred: {one_line(error)}") from error
    taken = {node.name for group in found.supported_groups for node in group}
    names = [node.name for node in shaped.graph.node]
    return Partitions(found.num_partitions, len(names), tuple(name for name in names if name not in taken))
