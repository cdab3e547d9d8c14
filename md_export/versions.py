"""Versions of what an artifact is made with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

from md_export.targets import TARGETS

# What computes golden cases and everything up to lowering.
TORCH: Final = ("torch", "transformers", "numpy")


def tools_of(target: str | None = None) -> dict[str, str]:
    """The packages that compute, and those that convert for a target, with their installed versions."""
    names = (*TORCH, *(TARGETS[target].distributions if target else ()))
    return {name: version(name) for name in names}
