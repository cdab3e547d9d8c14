"""onnxruntime's sessions and errors, and the exporter's noise kept off the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


class _ErrorsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR


@contextmanager
def quiet() -> Iterator[None]:
    """Drop Python warnings and log records below ERROR for the duration.

    onnxruntime's quantizer logs to the root logger and torch to loggers with handlers of their own,
    so the filter sits on the root logger and on every handler that exists.
    """
    only_errors = _ErrorsOnly()
    loggers = [logging.getLogger(name) for name in (None, *sorted(logging.root.manager.loggerDict))]
    filtered = [*loggers, *{handler for logger in loggers for handler in logger.handlers}]
    for holder in filtered:
        holder.addFilter(only_errors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for holder in filtered:
            holder.removeFilter(only_errors)
