"""Convert batched products of rank 4 to one BATCH_MATMUL of rank 4 in litert_torch.

torch decomposes a product of more than three axes to one of three axes between reshapes; the converter then drops some
of the reshapes, and readers of the product mix ranks (LiteRT#8975: wrong on GPUs).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import nn

from md_export.rewrites.rank_4_attention import count_rank_4_products
from md_export.system.vendors import replaced

_MATMUL: Final = torch.ops.aten.matmul


@contextmanager
def products_of_rank_4(module: nn.Module) -> Iterator[None]:
    """Within the block, keep products whole if the module has attention of rank 4; otherwise change nothing."""
    with whole_products() if count_rank_4_products(module) else nullcontext():
        yield


@contextmanager
def whole_products() -> Iterator[None]:
    """Within the block, keep all products whole."""
    from litert_torch.backend.lowerings import registry
    from litert_torch.fx_infra import decomp

    with ExitStack() as stack:
        for name in ("_pre_convert_decomp", "_pre_lower_decomp"):
            table = {op: how for op, how in getattr(decomp, name).items() if op != _MATMUL.default}
            stack.enter_context(replaced(decomp, name, table))
        lowerings = {**registry.global_registry.registered_ops, _MATMUL.default: _lower_product}
        stack.enter_context(replaced(registry.global_registry, "registered_ops", lowerings))
        yield


def _lower_product(context: Any, left: Any, right: Any) -> Any:  # noqa: ARG001 (litert_torch's signature)
    """Lower ``[..., m, k] · [..., k, n]`` with equal leading axes to stablehlo's dot_general."""
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo

    *batch, rows, _ = left.type.shape
    axes = list(range(len(batch)))
    numbers = stablehlo.DotDimensionNumbers.get(
        lhs_batching_dimensions=axes,
        rhs_batching_dimensions=axes,
        lhs_contracting_dimensions=[len(batch) + 1],
        rhs_contracting_dimensions=[len(batch)],
    )
    shape = [*batch, rows, right.type.shape[-1]]
    return stablehlo.dot_general(ir.RankedTensorType.get(shape, left.type.element_type), left, right, numbers)
