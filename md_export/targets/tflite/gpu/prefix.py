"""The first ops of a .tflite file as a file of its own, to find the op at which an engine goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
from ai_edge_litert import schema_py_generated as schema

from md_export.targets.tflite.flatbuffer import DTYPES, IDENTIFIER, data_of, read_model


def write_prefix(source: Path, count: int, path: Path) -> bool:
    """Write ``path``: the first ``count`` ops of ``source``, same inputs.

    Its outputs are the float32 tensors that those ops compute for the ops after them, all of them, so that
    no op before the cut is without use and what goes wrong before it shows.

    Returns:
        whether anything float32 crosses the cut; else no file is written.

    Raises:
        RuntimeFault: ``source`` is no .tflite file.
    """
    model = read_model(source)
    graph = model.subgraphs[0]
    crossing = _crossing(graph, count)
    if not crossing:
        return False
    graph.operators = graph.operators[:count]
    graph.outputs = crossing
    signature = model.signatureDefs[0]
    signature.outputs = [_output(index) for index in crossing]
    _keep_constants(model, graph)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    path.write_bytes(builder.Output())
    return True


def _output(index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = f"tensor_{index}", index
    return entry


def _crossing(graph: Any, count: int) -> list[int]:
    made = {index for operator in graph.operators[:count] for index in operator.outputs}
    wanted = {index for operator in graph.operators[count:] for index in operator.inputs} | set(graph.outputs)
    return [int(index) for index in sorted(made & wanted) if DTYPES.get(graph.tensors[index].type) == "float32"]


def _keep_constants(model: Any, graph: Any) -> None:
    """Drop the bytes of constants that no op is left to read; write the others inside the tables."""
    read = {index for operator in graph.operators for index in operator.inputs if index >= 0}
    kept = {graph.tensors[index].buffer: data_of(model, graph.tensors[index]) for index in read}
    for number, buffer in enumerate(model.buffers):
        buffer.offset = buffer.size = 0
        buffer.data = kept[number] if number in kept and kept[number].size else None
    model.metadata = None
