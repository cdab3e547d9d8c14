"""The first ops of a .tflite file as a file of its own, to find the op at which an engine goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from md_export.targets.tflite.flatbuffer import DTYPES, read_model
from md_export.targets.tflite.rewire import signature_entry, write_rewired


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
    signature.outputs = [signature_entry(f"tensor_{index}", index) for index in crossing]
    write_rewired(model, path)
    return True


def _crossing(graph: Any, count: int) -> list[int]:
    made = {index for operator in graph.operators[:count] for index in operator.outputs}
    wanted = {index for operator in graph.operators[count:] for index in operator.inputs} | set(graph.outputs)
    return [int(index) for index in sorted(made & wanted) if DTYPES.get(graph.tensors[index].type) == "float32"]
