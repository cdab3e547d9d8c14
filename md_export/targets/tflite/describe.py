"""What a .tflite file really holds: operators, stored bytes by type, and where weights stayed float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from md_export.errors import RuntimeFault
from md_export.targets.contract import Description
from md_export.targets.tflite.flatbuffer import (
    DTYPES,
    MALFORMED,
    WeightedOp,
    data_of,
    operator_name,
    read_model,
    weighted_ops,
)
from md_export.targets.tflite.notes import read_notes


def describe(path: Path) -> Description:
    """Read a saved file without running it.

    Weights are those of fully connected layers, convolutions and embeddings, by module path; each buffer is
    counted once. NaN and Inf must be looked for here: arithmetic with dynamic int8 ranges turns a NaN into
    finite values that may pass for a small error.

    Raises:
        RuntimeFault: the file is no .tflite file.
    """
    model = read_model(path)
    try:
        return _describe(model)
    except MALFORMED as error:
        raise RuntimeFault(f"{path.name}: corrupted: {error}; export it again") from error


def _describe(model: Any) -> Description:
    weights = weighted_ops(model)
    operators = Counter(operator_name(model, operator) for graph in model.subgraphs for operator in graph.operators)
    constants = _constants(model).values()
    return Description(
        stored=_bytes_by_dtype(model),
        ops=dict(sorted(operators.items())),
        float_weights=tuple(op.module for op in weights if op.dtype.startswith("float")),
        int8_weights=sum(op.dtype == "int8" for op in weights),
        int8_inputs=_int8_inputs(weights),
        not_finite=tuple(tensor.name.decode() for tensor in constants if not _finite(model, tensor)),
        notes=read_notes(model),
    )


def _int8_inputs(weights: Sequence[WeightedOp]) -> float:
    """Share of the convolutions and linears with integer weights that take int8 values: norms are float ones."""
    taking = [op.takes for op in weights if op.dtype in ("int8", "int4") and op.operator != "EMBEDDING_LOOKUP"]
    return taking.count("int8") / max(1, len(taking))


def _constants(model: Any) -> dict[int, Any]:
    """One tensor per buffer that holds anything."""
    tensors = (tensor for graph in model.subgraphs for tensor in graph.tensors)
    return {tensor.buffer: tensor for tensor in tensors if data_of(model, tensor).size}


def _bytes_by_dtype(model: Any) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for tensor in _constants(model).values():
        totals[DTYPES.get(tensor.type, "other")] += data_of(model, tensor).size
    return dict(sorted(totals.items()))


def _finite(model: Any, tensor: Any) -> bool:
    dtype = DTYPES.get(tensor.type, "other")
    return not dtype.startswith("float") or bool(np.isfinite(data_of(model, tensor).view(dtype)).all())
