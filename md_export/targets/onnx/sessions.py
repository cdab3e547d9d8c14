"""onnxruntime's sessions and errors."""

from __future__ import annotations

from typing import Final

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

# onnxruntime's exceptions share no base class but Exception.
ORT_ERRORS: Final = tuple(
    getattr(ort_errors, name)
    for name in (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)
# For graphs that come as bytes.
WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_ERRORS_ONLY: Final = 3


def session_options(optimized: bool) -> ort.SessionOptions:
    """Errors only; without ``optimized`` the graph is executed node by node as it is written."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
