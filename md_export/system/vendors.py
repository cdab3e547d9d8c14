"""Import vendors' libraries without their log output, and replace one of their attributes temporarily."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from md_export.errors import MissingExtraError

_STDERR: Final = 2


def import_quietly(module: str, extra: str) -> Any:
    """Import ``module`` and return it; log records up to WARNING, mostly about accelerators, are dropped.

    Raises:
        MissingExtraError: its package is not installed; names ``extra``.
        ImportError: the package does not load.
    """
    package = module.partition(".")[0]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(f"{package} is not installed: pip install 'md-export[{extra}]'") from error
    finally:
        logging.disable(before)


@contextmanager
def stderr_dropped() -> Iterator[None]:
    """Drop what this process writes to standard error, C++ libraries included; their errors still raise."""
    sys.stderr.flush()
    before = os.dup(_STDERR)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), _STDERR)
        yield
    finally:
        os.dup2(before, _STDERR)
        os.close(before)


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a vendor's module or class, and put the original back at the end."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
