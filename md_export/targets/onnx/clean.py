"""Clean an exported graph so that it depends only on the model: no source paths or traces, names from module paths."""

from __future__ import annotations

import ast
from typing import Final

import numpy as np
import onnx_ir as ir

from md_export.errors import ConversionError

_STANDARD: Final = ("", "ai.onnx")
_SCOPES = "pkg.torch.onnx.name_scopes"
NAME: Final = "resized_region"
_REGION: Final = 1


def qualified(domain: str, kind: str) -> str:
    """Return an operator's name, with its domain if it is not in the standard: ``com.microsoft::FusedConv``."""
    return kind if domain in _STANDARD else f"{domain}::{kind}"


def foreign_operators(model: ir.Model) -> list[str]:
    """Return the operators outside the standard and the functions of a file, in alphabetical order."""
    nodes = sorted({qualified(node.domain, node.op_type) for node in model.graph if node.domain not in _STANDARD})
    return nodes + sorted(f"function {function.name}" for function in model.functions.values())


def check_portable(model: ir.Model, maker: str) -> None:
    """Refuse operators that only some runtimes support; ``maker``: the tool that made the graph.

    Raises:
        ConversionError: the graph has such operators; the message lists them.
    """
    foreign = foreign_operators(model)
    if foreign:
        raise ConversionError(f"{maker} emitted operators outside the ONNX standard: {', '.join(foreign)}")


def clean(model: ir.Model) -> None:
    """Name nodes by module path, name folded weights, remove all metadata and documentation, in place.

    A node becomes ``<module path>/<operator>[.n]``, for instance ``up_blocks.0.resnets.1.conv_dw/Conv``;
    :func:`module_path` parses the name. A weight that the exporter transposed becomes
    ``<module path>.weight_transposed``.

    Raises:
        ConversionError: the graph uses an operator outside the ONNX standard.
    """
    check_portable(model, "the exporter")
    _name_nodes(model.graph)
    _name_folded_weights(model.graph)
    strip(model)


def module_path(node_name: str) -> str:
    """Return the path of the torch module of a node; empty for the root."""
    return node_name.rpartition("/")[0]


def _scope(node: ir.Node) -> str:
    # The exporter stores repr() of [root, …, module path, name of the traced operation];
    # nodes made by its optimizer (split, fused constants) have none.
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def _name_nodes(graph: ir.Graph) -> None:
    used: dict[str, int] = {}
    for node in graph:
        name = f"{_scope(node)}/{node.op_type}"
        count = used.get(name, 0)
        used[name] = count + 1
        node.name = f"{name}.{count}" if count else name


def _name_folded_weights(graph: ir.Graph) -> None:
    for node in graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.name is None or not weight.is_initializer():
            continue
        name = f"{module_path(node.name or '')}.weight_transposed"
        if name not in graph.initializers:
            weight.name = name


def strip(model: ir.Model) -> None:
    """Remove all metadata and documentation strings, because they contain source paths and tool notes."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    for item in (model, graph, *graph, *values):
        item.metadata_props.clear()
        item.doc_string = None


def name_regions(graph: ir.Graph) -> None:
    """Set the region input of each Resize of a 4-D value, one constant for all, in place.

        Resize(x, —, scales) → Resize(x, region, scales)        region = [0, 0, 0, 0, 1, 1, 1, 1]

    In the standard, the region is optional and ignored in all modes but one. onnxruntime's check of mobile usability
    treats a missing input as one of unknown shape, and then advises against Core ML.
    """
    nameless = [node for node in graph if node.op_type == "Resize" and node.inputs[_REGION] is None]
    if not nameless:
        return
    whole = ir.tensor(np.array([0.0] * 4 + [1.0] * 4, np.float32), name=NAME)
    region = ir.Value(name=NAME, const_value=whole, type=ir.TensorType(whole.dtype), shape=ir.Shape([8]))
    graph.register_initializer(region)
    for node in nameless:
        node.replace_input_with(_REGION, region)
