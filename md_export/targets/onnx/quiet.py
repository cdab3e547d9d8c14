"""Keep the exporter's and the quantizer's chatter off the terminal; errors still pass."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
