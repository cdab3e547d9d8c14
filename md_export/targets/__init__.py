"""The TARGETS table, and the versions of the packages that targets use.

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
# Packages that compute golden cases and all stages before lowering.
TORCH: Final = ("torch", "transformers", "numpy")
DIFFUSERS: Final = "diffusers"


def suffix_of(target: Target, form: str | None) -> str:
    """Return the suffix of an artifact in a form; ``form`` None: the target's default form."""
    return target.forms.get(form or "", target.suffix)


def target_named(name: str) -> Target:
    """Return the target with the name that a manifest has.

    Raises:
        ArtifactError: there is no such target.
    """
    if name not in TARGETS:
        raise ArtifactError(f"the manifest has an unknown target {name!r:.40}; known: {', '.join(TARGETS)}")
    return TARGETS[name]


def target_of(artifact: Path) -> Target:
    """Return the target of an artifact, by its suffix.

    Raises:
        ArtifactError: the path does not exist or has an unknown suffix.
    """
    require_artifact(artifact)
    if odd := irregular(artifact):
        raise ArtifactError(f"{odd} is a pipe, a device or a broken link, not a file; name an artifact")
    for target in TARGETS.values():
        if artifact.suffix in (target.suffix, *target.forms.values()):
            return target
    suffixes = ", ".join(target.suffix for target in TARGETS.values())
    raise ArtifactError(f"{artifact.name} is not an artifact of a known target; known suffixes: {suffixes}")


def tools_of(target: str | None = None, also: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the installed versions of the packages that compute, that a target converts with, and that a checkpoint
    needs (``also``)."""
    names = (*TORCH, *also, *(TARGETS[target].distributions if target else ()))
    return {name: _version(name) for name in names}


# Reading it takes milliseconds, and a plan asks for that of each recipe and artifact.
_version = cache(version)


def optional() -> dict[str, str]:
    """Return the versions of packages that only some checkpoints need, if they are installed."""
    try:
        return {DIFFUSERS: version(DIFFUSERS)}
    except PackageNotFoundError:
        return {}
