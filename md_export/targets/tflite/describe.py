"""What a .tflite file really holds: operators, stored bytes by type, and where weights stayed float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from md_export.errors import RuntimeFault
from md_export.targets.tflite.flatbuffer import DTYPES, MALFORMED, operator_name, read_model, stored_bytes, weighted_ops


def describe(path: Path) -> dict[str, Any]:
    """Read a saved file without running it.

    Returns:
        ``operators`` name → count; ``weight_bytes`` numpy dtype name → bytes of all constants, each buffer
        counted once; ``float_nodes`` module paths of weighted ops (fully connected, convolutions,
        embedding) whose weight is stored in float32 or float16; ``int8_nodes`` how many store it in int8.

    Raises:
        RuntimeFault: the file is no .tflite file.
    """
    model = read_model(path)
    try:
        return _describe(model)
    except MALFORMED as error:
        raise RuntimeFault(f"{path.name}: corrupted: {error}; export it again") from error


def _describe(model: Any) -> dict[str, Any]:
    weights = weighted_ops(model)
    operators = Counter(operator_name(model, operator) for graph in model.subgraphs for operator in graph.operators)
    return {
        "operators": dict(sorted(operators.items())),
        "weight_bytes": _bytes_by_dtype(model),
        "float_nodes": [op.module for op in weights if op.dtype.startswith("float")],
        "int8_nodes": sum(op.dtype == "int8" for op in weights),
    }


def _bytes_by_dtype(model: Any) -> dict[str, int]:
    stored = {
        tensor.buffer: (DTYPES.get(tensor.type, "other"), stored_bytes(model, tensor))
        for graph in model.subgraphs
        for tensor in graph.tensors
    }
    totals: Counter[str] = Counter()
    for dtype, count in stored.values():
        totals[dtype] += count
    return {dtype: count for dtype, count in sorted(totals.items()) if count}
