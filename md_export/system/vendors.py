"""Vendors' libraries: import them quietly, and replace one of their attributes for a while."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def import_quietly(module: str) -> Any:
    """Import ``module`` with log records up to WARNING dropped (about accelerators, mostly); errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(module)
    finally:
        logging.disable(before)


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Replace an attribute of a vendor's module or class, and put the original back at the end."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
