"""A graph compiled ahead of time: a small ONNX file with one EPContext node, and the NPU's binary beside it.

The phone loads both without compiling. Inputs, outputs and notes are those of the graph that it was compiled from.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError

from md_export.errors import ConversionError, RuntimeFault, one_line
from md_export.spec.artifact import files_of_context, sha256_of_artifact
from md_export.spec.snapdragon import Soc
from md_export.targets.notes import labelled, notes_among
from md_export.targets.onnx.describe import read_graph
from md_export.targets.onnx.inside import steps
from md_export.targets.onnx.npu.refused import RefusedOp
from md_export.targets.onnx.npu.session import npu_session, on_cpu, on_npu
from md_export.targets.onnx.sessions import ORT_ERRORS

_NODE: Final = "EPContext"
_COMPILED_FROM: Final = "compiled_from"
_SOC: Final = "soc"
# What onnxruntime appends where it moves transposes through a graph.
_MOVED: Final = re.compile(r"_token_\d+$")
_LARGEST: Final = 1 << 20


@dataclass(frozen=True)
class Compiled:
    """Nodes of the graph that the NPU has, those that it refused, and seconds; nothing is written where it refused."""

    nodes: int
    refused: tuple[RefusedOp, ...]
    seconds: float


def compile_context(graph: Path, soc: Soc, context: Path) -> Compiled:
    """Compile ``graph`` for an NPU and write ``context``, its binary beside it.

    Raises:
        ConversionError: the compiler failed although it refused no node.
    """
    started = time.perf_counter()
    try:
        session = npu_session(graph, soc, fallback=False, context=context)
    except ORT_ERRORS as error:
        refused = refused_ops(graph, soc)
        if not refused:
            raise ConversionError(f"{graph.name}: the compiler of {soc.name} failed: {one_line(error)}") from error
        return Compiled(0, refused, round(time.perf_counter() - started, 2))
    seconds = round(time.perf_counter() - started, 2)
    _label(context, {_COMPILED_FROM: sha256_of_artifact(graph), _SOC: soc.name})
    return Compiled(on_npu(session), (), seconds)


def refused_ops(graph: Path, soc: Soc) -> tuple[RefusedOp, ...]:
    """The nodes that the NPU leaves to the CPU, each with the torch module that the graph names."""
    try:
        left = on_cpu(npu_session(graph, soc, fallback=True))
    except ORT_ERRORS:
        return ()
    modules = {node.name: step.modules for node, step in zip(read_graph(graph).graph.node, steps(graph), strict=True)}
    names = [(_MOVED.sub("", name), kind) for name, kind in left]
    return tuple(RefusedOp(kind, name, modules.get(name, ())) for name, kind in dict.fromkeys(names))


def _label(context: Path, notes: dict[str, str]) -> None:
    model = onnx.load(context, load_external_data=False)
    for key, value in labelled(notes).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, context)


def check_context(context: Path, graph: Path, soc: Soc) -> None:
    """Whether a context file is one compiled graph, of this graph and for this chip.

    Raises:
        RuntimeFault: it is not, or it names another binary than the one beside it.
    """
    try:
        with context.open("rb") as file:
            model = onnx.load_from_string(file.read(_LARGEST))
    except (OSError, DecodeError) as error:
        raise RuntimeFault(f"{context.name}: cannot be read: {error}; export again") from error
    found = [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute} for node in model.graph.node]
    if [node.op_type for node in model.graph.node] != [_NODE] or found[0].get("embed_mode") != 0:
        raise RuntimeFault(f"{context.name} is not one compiled graph; export again")
    binary = files_of_context(context)[1].name
    if found[0].get("ep_cache_context") != binary.encode():
        raise RuntimeFault(f"{context.name} names another binary than {binary}; export again")
    notes = notes_among({pair.key: pair.value for pair in model.metadata_props})
    if notes.get(_SOC) != soc.name:
        raise RuntimeFault(f"{context.name} was compiled for {notes.get(_SOC)!r:.40}, not {soc.name}; export again")
    if notes.get(_COMPILED_FROM) != sha256_of_artifact(graph):
        raise RuntimeFault(
            f"{context.name} was compiled from another {graph.name} than the one that lies here; export again"
        )
