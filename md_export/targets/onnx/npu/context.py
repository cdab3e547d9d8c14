"""Compile a graph ahead of time: to a small ONNX file with one EPContext node, and the NPU's binary beside it.

The phone loads both without compiling. Inputs, outputs and metadata are those of the compiled graph.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from md_export.errors import ConversionError, RuntimeFault, one_line, raised_as
from md_export.spec.artifact import files_of_context, sha256_of_artifact
from md_export.spec.names import Soc
from md_export.spec.tensors import Arrays
from md_export.targets.contract import labelled, notes_among
from md_export.targets.onnx.describe import read_graph
from md_export.targets.onnx.graph import graph as stored_graph
from md_export.targets.onnx.npu.process import NpuRun, RefusedOp
from md_export.targets.onnx.run import OnnxRunner
from md_export.targets.onnx.save import ORT_ERRORS, session_options

_PROVIDER: Final = "QNN"
# Log only fatal errors; exceptions and placements contain the provider's other messages.
_FATAL_ONLY: Final = 4
_NODE: Final = "EPContext"
_COMPILED_FROM: Final = "compiled_from"
_SOC: Final = "soc"
# Suffix that onnxruntime adds to names when it moves transposes through a graph.
_MOVED: Final = re.compile(r"_token_\d+$")
_LARGEST: Final = 1 << 20


def npu_session(path: Path, soc: Soc, fallback: bool, context: Path | None = None) -> ort.InferenceSession:
    """Compile a graph, or load a compiled one.

    Args:
        path: a graph, or one with a compiled context in it.
        soc: the chip.
        fallback: run nodes that the NPU refuses on the CPU; otherwise, such a graph is refused.
        context: where to write the compiled graph; its binary goes beside it.

    Raises:
        one of :data:`md_export.targets.onnx.save.ORT_ERRORS`.
    """
    import onnxruntime_qnn

    options = session_options(optimized=True)
    options.log_severity_level = _FATAL_ONLY
    entries = {
        "session.disable_cpu_ep_fallback": str(int(not fallback)),
        "session.record_ep_graph_assignment_info": "1",
    }
    if context is not None:
        entries |= {
            "ep.context_enable": "1",
            "ep.context_file_path": str(context),
            "ep.context_embed_mode": "0",
        }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    own = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": str(soc.model),
        "htp_arch": str(soc.htp),
        "enable_htp_fp16_precision": "1",
        # Otherwise, the CPU would convert an app's floats to integers and back.
        "offload_graph_io_quantization": "0",
    }
    options.add_provider_for_devices([_device()], own)
    return ort.InferenceSession(str(path), options)


@cache
def _device() -> Any:
    """Return the provider's device; its library is registered once per process."""
    import onnxruntime_qnn

    ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    return next(device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER)


def placement(session: ort.InferenceSession) -> dict[str, list[tuple[str, str]]]:
    """Return names and kinds of the nodes by provider: ``QNN`` is the NPU, all others are the CPU."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, []).extend((node.name, node.op_type) for node in part.get_nodes())
    return found


def on_cpu(session: ort.InferenceSession) -> list[tuple[str, str]]:
    """Return names and kinds of the nodes on the CPU."""
    return [node for name, nodes in placement(session).items() if name != _PROVIDER for node in nodes]


def on_npu(session: ort.InferenceSession) -> int:
    """Return the number of nodes on the NPU."""
    return len(placement(session).get(_PROVIDER, []))


def compile_context(graph: Path, soc: Soc, context: Path) -> NpuRun:
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
        return NpuRun(refused=refused, compile_seconds=round(time.perf_counter() - started, 2))
    seconds = round(time.perf_counter() - started, 2)
    _label(context, {_COMPILED_FROM: sha256_of_artifact(graph), _SOC: soc.name})
    size = sum(path.stat().st_size for path in files_of_context(context))
    return NpuRun(nodes=on_npu(session), context_bytes=size, compile_seconds=seconds)


def refused_ops(graph: Path, soc: Soc) -> tuple[RefusedOp, ...]:
    """Return the nodes that the NPU leaves to the CPU, with their torch modules if recorded."""
    try:
        left = on_cpu(npu_session(graph, soc, fallback=True))
    except ORT_ERRORS:
        return ()
    modules = {
        node.name: step.modules
        for node, step in zip(read_graph(graph).graph.node, stored_graph(graph).steps, strict=True)
    }
    names = [(_MOVED.sub("", name), kind) for name, kind in left]
    return tuple(RefusedOp(kind, name, modules.get(name, ())) for name, kind in dict.fromkeys(names))


def _label(context: Path, notes: dict[str, str]) -> None:
    model = onnx.load(context, load_external_data=False)
    for key, value in labelled(notes).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, context)


def check_context(context: Path, graph: Path, soc: Soc) -> None:
    """Check that a context file contains only this graph, compiled for this chip.

    Raises:
        RuntimeFault: it does not, or it names another binary than the one beside it.
    """
    what = f"{context.name}: cannot be read"
    with raised_as(RuntimeFault, what, (OSError, DecodeError), then="; export again"), context.open("rb") as file:
        model = onnx.load_from_string(file.read(_LARGEST))
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
        raise RuntimeFault(f"{context.name} was compiled from another {graph.name} than this export's; export again")


def run_on_npu(context: Path, soc: Soc, batches: Sequence[Arrays]) -> NpuRun:
    """Run a context of :func:`md_export.targets.onnx.npu.context.compile_context`, without the CPU provider.

    Raises:
        RuntimeFault: the backend refuses the context or the inputs.
    """
    with raised_as(RuntimeFault, f"{context.name}: the NPU's backend cannot load it", ORT_ERRORS):
        runner = OnnxRunner(npu_session(context, soc, fallback=False), context.name)
    started = time.perf_counter()
    outputs = [runner.run(batch) for batch in batches]
    return NpuRun(outputs, run_seconds=round(time.perf_counter() - started, 2))
