"""Versions of what an artifact is made with."""

from __future__ import annotations

from importlib.metadata import version

from md_export.targets import TARGETS


def tools_of(target: str) -> dict[str, str]:
    """The packages that compute and convert for a target, with their installed versions."""
    names = ("torch", "transformers", "numpy", *TARGETS[target].distributions)
    return {name: version(name) for name in names}
