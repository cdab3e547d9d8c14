"""onnxruntime sessions on Qualcomm's backend for Hexagon: its compiler and, on x86, its simulator."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from md_export.spec.snapdragon import Soc
from md_export.targets.onnx.sessions import session_options

_PROVIDER: Final = "QNN"
# Own messages of the provider are told by exceptions and placements.
_FATAL_ONLY: Final = 4


def npu_session(path: Path, soc: Soc, fallback: bool, context: Path | None = None) -> ort.InferenceSession:
    """Compile a graph, or load a compiled one.

    Args:
        path: a graph, or one with a compiled context in it.
        soc: the chip.
        fallback: let the CPU have what the NPU does not take; else such a graph is refused.
        context: where to write the compiled graph; its binary goes beside it.

    Raises:
        one of :data:`md_export.targets.onnx.sessions.ORT_ERRORS`.
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
        # Else the CPU would turn an app's floats into integers and back.
        "offload_graph_io_quantization": "0",
    }
    options.add_provider_for_devices([_device()], own)
    return ort.InferenceSession(str(path), options)


@cache
def _device() -> Any:
    """The provider's device; a library is registered once in a process."""
    import onnxruntime_qnn

    ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
    return next(device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER)


def placement(session: ort.InferenceSession) -> dict[str, list[tuple[str, str]]]:
    """Names and kinds of the nodes that each provider has: ``QNN`` the NPU's, all others the CPU's."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in session.get_provider_graph_assignment_info():
        found.setdefault(part.ep_name, []).extend((node.name, node.op_type) for node in part.get_nodes())
    return found


def on_cpu(session: ort.InferenceSession) -> list[tuple[str, str]]:
    """Names and kinds of the nodes that the NPU did not take."""
    return [node for name, nodes in placement(session).items() if name != _PROVIDER for node in nodes]


def on_npu(session: ort.InferenceSession) -> int:
    """Number of nodes that the NPU took."""
    return len(placement(session).get(_PROVIDER, []))
