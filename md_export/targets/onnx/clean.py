"""Make an exported graph a function of the model alone: no source paths, no traces, names from module paths."""

from __future__ import annotations

import ast

import onnx_ir as ir

from md_export.targets.onnx.standard import check_portable

_SCOPES = "pkg.torch.onnx.name_scopes"


def clean(model: ir.Model) -> None:
    """Name nodes by module path, name folded weights, drop all metadata and documentation, in place.

    A node becomes ``<module path>/<operator>[.n]``, for instance ``up_blocks.0.resnets.1.conv_dw/Conv``;
    :func:`module_path` takes it apart again. A weight that the exporter transposed takes the name
    ``<module path>.weight_transposed``.

    Raises:
        ConversionError: the graph uses an operator outside the ONNX standard.
    """
    check_portable(model, "the exporter")
    _name_nodes(model.graph)
    _name_folded_weights(model.graph)
    strip(model)


def module_path(node_name: str) -> str:
    """The torch module a node came from; empty where it belongs to the root."""
    return node_name.rpartition("/")[0]


def _scope(node: ir.Node) -> str:
    # The exporter stores repr() of [root, …, module path, name of the traced operation];
    # nodes made by its optimizer (split, fused constants) carry none.
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
    """Drop all metadata and documentation strings: they hold source paths and tool notes."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]
    for item in (model, graph, *graph, *values):
        item.metadata_props.clear()
        item.doc_string = None
