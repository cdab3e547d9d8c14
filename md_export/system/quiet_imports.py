"""Imports of large libraries without the warnings that they log about accelerators a CPU does not have."""

from __future__ import annotations

import importlib
import logging
from typing import Any


def import_quietly(module: str) -> Any:
    """Import ``module`` with log records up to WARNING dropped; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(module)
    finally:
        logging.disable(before)
