"""Shortcuts in torch's ONNX exporter, which make the same graph in less time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript import TracedOnnxFunction
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter._matcher import SimplePatternMatcher
from torch.onnx._internal.exporter._registration import ONNXRegistry

from md_export.system.vendors import replaced
from md_export.targets.lowering import quiet

# Since opset 21, the exporter emits GroupNormalization; onnxruntime's CPU provider expands it into more
# and slower nodes, and mobile providers do not support it.
OPSET: Final = 18
_match: Final = SimplePatternMatcher.match


def _read_functions() -> ONNXRegistry:
    """Return onnxscript's functions for torch's operators.

    For the table, onnxscript parses the source of each of its 500 functions, and uses only the domain of the result.
    """
    with quiet(), replaced(TracedOnnxFunction, "function_ir", property(attrgetter("opset"))):
        return ONNXRegistry.from_torchlib(OPSET)


# torch makes both tables again in each process, the first one in each export. They are made on import, because workers
# are forks of a process that has imported this module.
_FUNCTIONS: Final = _read_functions()
torch.export.default_decompositions()


def _functions(_: type[ONNXRegistry], opset_version: int) -> ONNXRegistry:
    assert opset_version == OPSET  # noqa: S101 (the only one that we export)
    return _FUNCTIONS


def _match_same_operator(matcher: Any, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> MatchResult:
    """Match a rule's pattern at a node.

    For a pattern with several results, onnxscript lists all nodes of the graph before it looks at this one, which takes
    quadratic time.
    """
    if not matcher.pattern.output_nodes[0].op.matches(node.op_type):
        return MatchResult().fail("another operator")
    return _match(matcher, model, graph, node, **options)


@contextmanager
def shortcuts() -> Iterator[None]:
    """Take the shortcuts within the block."""
    functions = replaced(ONNXRegistry, "from_torchlib", classmethod(_functions))
    with functions, replaced(SimplePatternMatcher, "match", _match_same_operator):
        yield
