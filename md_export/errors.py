"""Errors that a user can meet. Each message says what happened, where, and what to do next, in one line if possible.

    MdExportError            exit 1
    ├── UsageError           exit 2   flags or arguments that contradict each other
    ├── ConfigError                   a config.json of the checkpoint
    ├── CheckpointError               files, keys, shapes, values of a checkpoint
    ├── RecipeError                   a recipe file: names file, table and field
    ├── RewriteError                  a rewrite that is refused, or that fired zero times
    ├── MachineError                  this machine lacks memory, disk or a library; no result about an artifact
    │   ├── MissingExtraError         an optional dependency is not installed
    │   └── OutputError               the output folder exists, is full, or is read-only
    ├── ArtifactError                 a manifest or artifact that cannot be read or was altered
    ├── GoldenError                   a golden folder that cannot be read or was altered
    ├── ConversionError               a converter failed; carries its last lines
    ├── RuntimeFault                  an artifact does not run in its runtime
    └── ParityError          exit 3   an artifact does not compute what the checkpoint computes
        ├── RegressionError           an export is worse than an older one by more than its recipe allows
        └── PinError                  an export differs from its pin, or no trusted key signed the pin

Only :func:`md_export.cli.main` prints them.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Converters print whole graphs into their messages.
_LONGEST_LINE: Final = 400


class MdExportError(Exception):
    """Base of all errors of this package; the message is shown to the user unchanged."""

    exit_code = 1


class UsageError(MdExportError):
    """Flags or arguments that contradict each other."""

    exit_code = 2


class ConfigError(MdExportError):
    """A ``config.json`` describes a component that cannot be built."""


class CheckpointError(MdExportError):
    """A checkpoint's files, keys, shapes or values do not match its configs."""


class RecipeError(MdExportError):
    """A recipe file has an unknown, missing or wrong field."""


class RewriteError(MdExportError):
    """A rewrite was refused because it would change the function, or it fired zero times."""


class MachineError(MdExportError):
    """The machine lacks memory, disk space or a library, so there is no result about a checkpoint or an artifact."""


class MissingExtraError(MachineError):
    """The libraries of a target are not installed."""


class OutputError(MachineError):
    """The output cannot be written where the user asked."""


class ArtifactError(MdExportError):
    """A manifest or an artifact is missing, unreadable or altered."""


class GoldenError(MdExportError):
    """A golden folder is missing, unreadable or altered."""


class ConversionError(MdExportError):
    """A converter failed or crashed."""


class RuntimeFault(MdExportError):
    """An artifact could not be executed by its runtime."""


class ParityError(MdExportError):
    """At least one artifact falls short of its recipe's thresholds."""

    exit_code = 3


class RegressionError(ParityError):
    """An export is worse than an older one by more than its recipe's budget."""


class PinError(ParityError):
    """An export differs from its pin, or the pin has no signature by a trusted key."""


# Parts of the messages that libraries print when memory or disk is exhausted.
_EXHAUSTED: Final = (
    "bad_alloc",
    "bad allocation",
    "annot allocate memory",
    "can't allocate memory",
    "Unable to allocate",
    "ailed to allocate memory",
    "out of memory",
    "No space left on device",
    "Disk quota exceeded",
    "Too many open files",
)


def is_exhausted(text: str) -> bool:
    """Return whether a library's message or log says that memory or disk is exhausted."""
    return any(words in text for words in _EXHAUSTED)


def one_line(error: BaseException) -> str:
    """Return a library's error message on one line, cut to 400 characters; its class name if the message is empty."""
    return " ".join(str(error).split())[:_LONGEST_LINE] or type(error).__name__


@contextmanager
def raised_as(
    kind: type[MdExportError], message: str, errors: type[Exception] | tuple[type[Exception], ...], then: str = ""
) -> Iterator[None]:
    """Raise a library's error as ``kind``: ``message``, a colon, the library's message on one line, then ``then``.

    Args:
        kind: class of the error to raise.
        message: what happened and where.
        errors: classes of errors to catch.
        then: what to do next, with the punctuation that separates it from the library's message.
    """
    try:
        yield
    except errors as error:
        raise kind(f"{message}: {one_line(error)}{then}") from error
