"""What makes a graph portable: operators of the ONNX standard alone."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from md_export.errors import ConversionError

_STANDARD: Final = ("", "ai.onnx")


def qualified(domain: str, kind: str) -> str:
    """An operator's name; ``com.microsoft::FusedConv`` where it is none of the standard's."""
    return kind if domain in _STANDARD else f"{domain}::{kind}"


def foreign_operators(model: ir.Model) -> list[str]:
    """Operators outside the standard, and functions, which an exporter may leave in a file; in alphabetical order."""
    nodes = sorted({qualified(node.domain, node.op_type) for node in model.graph if node.domain not in _STANDARD})
    return nodes + sorted(f"function {function.name}" for function in model.functions.values())


def check_portable(model: ir.Model, maker: str) -> None:
    """Refuse what only some runtimes execute; ``maker`` is who made the graph.

    Raises:
        ConversionError: names the operators.
    """
    foreign = foreign_operators(model)
    if foreign:
        raise ConversionError(f"{maker} emitted operators outside the ONNX standard: {', '.join(foreign)}")
