"""What happens inside a saved ONNX file: its nodes by torch module, and the values between them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort

from md_export.errors import RuntimeFault, one_line
from md_export.spec.tensors import Array, Arrays
from md_export.targets.contract import Step
from md_export.targets.onnx.clean import module_path
from md_export.targets.onnx.describe import read_unfused
from md_export.targets.onnx.rounding import rounded_graph
from md_export.targets.onnx.sessions import ORT_ERRORS, WEIGHTS_FOLDER, session_options

# What onnxruntime's quantizer inserts; it names these nodes after tensors.
_INSERTED: Final = ("QuantizeLinear", "DequantizeLinear")
_SPINNING: Final = "session.intra_op.allow_spinning"


def steps(path: Path) -> tuple[Step, ...]:
    """Every node with the torch module that its name tells; an inserted one has that of the node it reads.

    Raises:
        RuntimeFault: the file is no ONNX model.
    """
    return tuple(_steps(read_unfused(path).graph))


def _steps(graph: Any) -> Iterator[Step]:
    made: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        modules = made.get(node.input[0], ()) if node.op_type in _INSERTED else (module_path(node.name),)
        made |= dict.fromkeys(node.output, modules)
        yield Step(node.op_type, modules, tuple(filter(None, node.input)), tuple(filter(None, node.output)))


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute the graph as it is written, without onnxruntime's optimizations, and keep the named values as float32.

    What a float16 graph has in float16 is rounded to it: see :mod:`md_export.targets.onnx.rounding`.

    Raises:
        RuntimeFault: onnxruntime refuses the graph or the inputs.
    """
    model = rounded_graph(path) or read_unfused(path)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    options = session_options(optimized=False)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
    options.add_session_config_entry(_SPINNING, "0")
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = session.run(list(names), {name: np.ascontiguousarray(value) for name, value in inputs.items()})
    except (*ORT_ERRORS, ValueError) as error:
        raise RuntimeFault(f"{path.name}: onnxruntime failed: {one_line(error)}") from error
    return {name: value.astype(np.float32) for name, value in zip(names, found, strict=True)}
