"""Declared types against computed ones: before the run for widths, at run time for kinds and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.dtypes import TensorType, ValueType
from md_export.targets.coreml.mil.graph import Declared, Op

# Ops whose result's type comes from a parameter or from one operand among several, not from the inputs at large.
_CHOOSE_THEIR_TYPE = frozenset({"cast", "quantize", "dequantize", "fill", "fill_like", "one_hot", "range_1d"})


def check_widths(op: Op, types: Mapping[str, ValueType]) -> None:
    """A floating-point output must be as wide as some floating-point operand.

    Kernels compute in float32, so nothing else would notice an output declared float32 after a float16 op.

    Raises:
        RuntimeFault: names the op, the output and both types.
    """
    if op.kind in _CHOOSE_THEIR_TYPE or op.kind.startswith("constexpr_"):
        return
    operands = [types.get(name) for name in op.refs]
    widths = {t.dtype.name for t in operands if isinstance(t, TensorType) and t.dtype.kind == "float"}
    for out in op.outputs:
        declared = out.type
        if not isinstance(declared, TensorType) or declared.dtype.kind != "float" or not widths:
            continue
        if declared.dtype.name not in widths:
            operands_text = ", ".join(sorted(widths))
            raise RuntimeFault(f"{op.kind} declares {out.name} as {declared}, its operands are {operands_text}")


def check_output(op: Op, declared: Declared, result: Any) -> torch.Tensor:
    """``result`` if it is what the program declares for this output.

    Raises:
        RuntimeFault: names the op, its type, the output, what was declared and what was computed.
    """
    where = f"{op.kind} → {declared.name}"
    if not isinstance(declared.type, TensorType):
        raise RuntimeFault(f"{where} is declared {declared.type}, which is outside this runtime's scope")
    if not isinstance(result, torch.Tensor):
        raise RuntimeFault(f"{where}: the op gave {type(result).__name__}, the program declares {declared.type}")
    if _kind(result) != declared.type.dtype.kind or not declared.type.accepts(tuple(result.shape)):
        computed = f"{_kind(result)}{list(result.shape)}"
        raise RuntimeFault(f"{where}: the program declares {declared.type}, the op computes {computed}")
    return result


def _kind(tensor: torch.Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "int"
