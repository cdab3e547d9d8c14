"""Silence coremltools, and add the component's name to its errors.

coremltools draws a progress bar per stage on stderr and logs a line per runtime library that exists
only on a Mac. Its logged errors are kept, because they name the failed operation; the exception often
does not.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from md_export.errors import ConversionError, one_line

# Errors of torch.export and coremltools for an unsupported graph; any other error is a bug of md-export.
VENDOR_ERRORS = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, AssertionError, ArithmeticError)
_LOGGERS = ("coremltools", "torch")


class _Errors(logging.Handler):
    """Collects the text of error records."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(line.strip(" :") for line in record.getMessage().splitlines() if line.strip())


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Silence bars, warnings and log lines of coremltools and torch; yield the errors logged within the block."""
    handler = _Errors()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(logging.ERROR)
            logger.propagate = False
        try:
            yield handler.lines
        finally:
            for logger, (level, propagate) in zip(loggers, before, strict=True):
                logger.removeHandler(handler)
                logger.setLevel(level)
                logger.propagate = propagate


@contextlib.contextmanager
def converting(component: str, stage: str) -> Iterator[None]:
    """Run one stage of a conversion silently.

    Raises:
        ConversionError: the vendor's code failed; the message names component, stage and operation.
    """
    with quiet() as logged:
        try:
            yield
        except VENDOR_ERRORS as error:
            where = f"{logged[0]}: " if logged else ""
            raise ConversionError(
                f"{component}: Core ML {stage} failed: {where}{one_line(error)}; rewrite the operation named here, "
                "or leave the component out with --component"
            ) from error


with quiet():
    import coremltools as ct
    import coremltools.optimize.coreml as cto

__all__ = ["VENDOR_ERRORS", "converting", "ct", "cto", "quiet"]
