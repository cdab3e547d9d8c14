"""Keep the converter's and the quantizer's chatter off the terminal; errors still pass."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Drop Python warnings and log records below ERROR for the duration, and litert_torch's stage list.

    Standard error itself stays: what C++ writes there before it aborts is all that a crash tells.
    """
    # Read at every stage by litert_torch, which else prints to standard output.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
