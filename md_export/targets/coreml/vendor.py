"""coremltools behind one door: its noise kept off the terminal, its failures given a component's name.

coremltools draws a progress bar per stage on stderr and logs a line per runtime library that exists
on a Mac only. What it logs as an error is kept: it names the operation that failed, which the
exception itself often does not.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from md_export.errors import ConversionError, one_line

# What torch.export and coremltools raise on a graph they cannot take; anything else is a bug of ours.
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
    """Silence bars, warnings and log lines of coremltools and torch; yields the errors logged meanwhile."""
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
