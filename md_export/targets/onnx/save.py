"""Write an ONNX model, weights inside the file as long as the format can hold them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

import onnx_ir as ir

from md_export.targets.notes import notes_among
from md_export.targets.onnx.fused import write_fused
from md_export.targets.onnx.standard import check_portable
from md_export.targets.onnx.target import OnnxModel
from md_export.targets.onnx.wire import data_name, write_inline

# protobuf refuses messages of 2 GiB; the rest is left for the graph itself.
INLINE_BYTES: Final = 1_900_000_000


def save(model: OnnxModel, path: Path) -> None:
    """Write ``path``; above 1.9 GB the weights go to ``<name>.data`` beside it.

    A model whose notes name a form of :mod:`md_export.targets.onnx.fused` is written in that form.

    Args:
        model: what :func:`lower` or :func:`quantize` returned.
        path: file to create; its folder exists.

    Raises:
        ConversionError: the graph has operators outside the ONNX standard, or cannot have the form.
    """
    graph = model.model
    check_portable(graph, "quantization")
    form = notes_among(graph.metadata_props).get("form")
    if form is None:
        _write(graph, path)
        return
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        source = Path(scratch) / "portable.onnx"
        _write(graph, source)
        write_fused(source, path, form, weights_are_external(graph))


def _write(model: ir.Model, path: Path) -> None:
    if weights_are_external(model):
        ir.save(model, path, external_data=data_name(path.name))
        return
    with path.open("wb") as file:
        write_inline(model, file)


def weights_are_external(model: ir.Model) -> bool:
    """Whether the weights are too large to be stored inside the file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) > INLINE_BYTES
