"""Versions of what an artifact is made with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from md_export.targets import TARGETS

# What computes golden cases and everything up to lowering.
TORCH: Final = ("torch", "transformers", "numpy")
DIFFUSERS: Final = "diffusers"


def tools_of(target: str | None = None, also: tuple[str, ...] = ()) -> dict[str, str]:
    """The packages that compute, ``also`` those of a checkpoint, and those that convert for a target, with their
    installed versions."""
    names = (*TORCH, *also, *(TARGETS[target].distributions if target else ()))
    return {name: version(name) for name in names}


def optional() -> dict[str, str]:
    """Return the versions of packages that some checkpoints need, where they are installed."""
    try:
        return {DIFFUSERS: version(DIFFUSERS)}
    except PackageNotFoundError:
        return {}
