"""Write a .tflite file whose first graph gives or takes other tensors: shared by what runs parts of a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
from ai_edge_litert import schema_py_generated as schema

from md_export.targets.tflite.flatbuffer import IDENTIFIER, data_of


def signature_entry(name: str, tensor: int) -> Any:
    """A tensor of the first graph as an input or output of the signature."""
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def write_rewired(model: Any, path: Path) -> None:
    """Write a model that ``read_model`` gave; constants that no op of its first graph reads are left out."""
    _keep_constants(model, model.subgraphs[0])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    path.write_bytes(builder.Output())


def _keep_constants(model: Any, graph: Any) -> None:
    """Drop the bytes of constants that no op is left to read; write the others inside the tables."""
    read = {index for operator in graph.operators for index in operator.inputs if index >= 0}
    kept = {graph.tensors[index].buffer: data_of(model, graph.tensors[index]) for index in read}
    for number, buffer in enumerate(model.buffers):
        buffer.offset = buffer.size = 0
        buffer.data = kept[number] if number in kept and kept[number].size else None
    model.metadata = None
