"""Write an ONNX model, weights inside the file as long as the format can hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import onnx_ir as ir

# protobuf refuses messages of 2 GiB; the rest is left for the graph itself.
INLINE_BYTES: Final = 1_900_000_000


def save(model: object, path: Path) -> None:
    """Write ``path``; above 1.9 GB the weights go to ``<name>.data`` beside it.

    Args:
        model: what :func:`lower` or :func:`quantize` returned.
        path: file to create; its folder exists.
    """
    graph = cast(ir.Model, model)
    ir.save(graph, path, external_data=f"{path.name}.data" if weights_are_external(graph) else None)


def weights_are_external(model: ir.Model) -> bool:
    """Whether the weights are too large to be stored inside the file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) > INLINE_BYTES
