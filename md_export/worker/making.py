"""Tasks of a worker process: one artifact.

Imports are inside, so that a task loads what it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Make one artifact; answers with its manifest entry."""
    from md_export.engine.artifact import BuildStep, build_component
    from md_export.spec.artifact import entry_to_dict

    return entry_to_dict(build_component(BuildStep.from_dict(request)))


def join(request: dict[str, Any]) -> dict[str, Any]:
    """Make one Core ML package of several, a function each."""
    import tempfile

    from md_export.targets.coreml.save import join

    path = Path(request["path"])
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
        join({name: Path(package) for name, package in request["packages"].items()}, path, Path(scratch))
    return {}


def split(request: dict[str, Any]) -> dict[str, Any]:
    """Write one function of a Core ML package as a package of its own; answers with what is found inside."""
    from md_export.targets.coreml.describe import describe
    from md_export.targets.coreml.save import split

    split(Path(request["package"]), request["function"], Path(request["path"]))
    found = describe(Path(request["path"]))
    return {"stored": found.stored, "ops": found.ops}
