"""All content of a saved ONNX file: nodes with their attributes, constants, inputs, outputs, versions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import onnx

from md_export.errors import RuntimeFault, raised_as
from md_export.spec.tensors import Array
from md_export.targets.onnx.clean import module_path, qualified
from md_export.targets.onnx.describe import MALFORMED, dtype_of, read_unfused
from md_export.targets.stored_graph import Step, StoredConstant, StoredGraph

_INSERTED: Final = ("QuantizeLinear", "DequantizeLinear")


def graph(path: Path) -> StoredGraph:
    """Read every node with the torch module in its name; an inserted node has the module of the node that it reads.

    Raises:
        RuntimeFault: the file is not an ONNX model, or onnxruntime has fused it.
    """
    model = read_unfused(path)
    found = StoredGraph(
        inputs={item.name: str(item.type) for item in model.graph.input},
        outputs={f"{item.name} {item.type}": item.name for item in model.graph.output},
        steps=tuple(_steps(model.graph)),
        constants={
            tensor.name: StoredConstant(f"{dtype_of(tensor)}{list(tensor.dims)}", partial(_read, tensor, path.parent))
            for tensor in model.graph.initializer
        },
    )
    for name in ("node", "initializer", "value_info", "input", "output"):
        model.graph.ClearField(name)
    # Metadata is compared separately; producers, names and comments have no effect.
    for name in ("metadata_props", "producer_version"):
        model.ClearField(name)
    return StoredGraph(found.inputs, found.outputs, found.steps, found.constants, str(model))


def _read(tensor: onnx.TensorProto, folder: Path) -> Array:
    with raised_as(RuntimeFault, f"{tensor.name} cannot be read", MALFORMED, then="; export it again"):
        values: Array = onnx.numpy_helper.to_array(tensor, str(folder))
    return values


def _steps(found: Any) -> Iterator[Step]:
    made: dict[str, tuple[str, ...]] = {}
    for node in found.node:
        kind = qualified(node.domain, node.op_type)
        modules = made.get(node.input[0], ()) if kind in _INSERTED else (module_path(node.name),)
        made |= dict.fromkeys(node.output, modules)
        settings = {item.name: _words(item) for item in node.attribute}
        # An omitted operand has no name.
        operands = "".join("." if name else "-" for name in node.input)
        yield Step(
            kind,
            modules,
            tuple(filter(None, node.input)),
            tuple(filter(None, node.output)),
            {**settings, "operands": operands.rstrip("-")},
        )


def _words(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    return repr(value) if isinstance(value, int | float | bytes | list) else str(value)
