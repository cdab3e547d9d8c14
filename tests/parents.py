"""A function to isolate: which process is the parent of the one that it runs in?"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Nothing:
    """A request that says nothing."""


@dataclass(frozen=True)
class Parent:
    """The number of a process."""

    process: int


def parent(_: Nothing) -> Parent:
    """Return the parent of this process."""
    return Parent(os.getppid())
