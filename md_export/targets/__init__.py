"""The TARGETS table, and the versions of the packages behind it.

A new target is a folder, one line here and one extra in pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from md_export.errors import ArtifactError
from md_export.spec.given import require_artifact
from md_export.system.files import irregular
from md_export.targets.contract import Target
from md_export.targets.coreai.target import CoreaiTarget
from md_export.targets.coreml.target import CoremlTarget
from md_export.targets.onnx.target import OnnxTarget
from md_export.targets.tflite.target import TfliteTarget

TARGETS: Final[Mapping[str, Target]] = {
    "coreml": CoremlTarget(),
    "tflite": TfliteTarget(),
    "onnx": OnnxTarget(),
    "coreai": CoreaiTarget(),
}
# What computes golden cases and everything up to lowering.
TORCH: Final = ("torch", "transformers", "numpy")
DIFFUSERS: Final = "diffusers"


def suffix_of(target: Target, form: str | None) -> str:
    """Ending of an artifact in that form; None for the usual one."""
    return target.forms.get(form or "", target.suffix)


def target_named(name: str) -> Target:
    """The target that a manifest names.

    Raises:
        ArtifactError: the name is unknown.
    """
    if name not in TARGETS:
        raise ArtifactError(f"the manifest is of an unknown target {name!r:.40}; known: {', '.join(TARGETS)}")
    return TARGETS[name]


def target_of(artifact: Path) -> Target:
    """The target that an artifact's name belongs to.

    Raises:
        ArtifactError: the path does not exist or has an unknown suffix.
    """
    require_artifact(artifact)
    if odd := irregular(artifact):
        raise ArtifactError(f"{odd} is a pipe, a device or a broken link, no file; name an artifact")
    for target in TARGETS.values():
        if artifact.suffix in (target.suffix, *target.forms.values()):
            return target
    suffixes = ", ".join(target.suffix for target in TARGETS.values())
    raise ArtifactError(f"{artifact.name} is no artifact of a known target; known endings: {suffixes}")


def tools_of(target: str | None = None, also: tuple[str, ...] = ()) -> dict[str, str]:
    """The packages that compute, ``also`` those of a checkpoint, and those that convert for a target, with their
    installed versions."""
    names = (*TORCH, *also, *(TARGETS[target].distributions if target else ()))
    return {name: _version(name) for name in names}


# Reading it takes milliseconds, and a plan asks for that of each recipe and artifact.
_version = cache(version)


def optional() -> dict[str, str]:
    """Return the versions of packages that some checkpoints need, where they are installed."""
    try:
        return {DIFFUSERS: version(DIFFUSERS)}
    except PackageNotFoundError:
        return {}
