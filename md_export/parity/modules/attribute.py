"""Which torch module does an artifact compute wrongly? Module by module along one component."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from md_export.artifact import ArtifactEntry
from md_export.errors import ArtifactError, RuntimeFault
from md_export.manifest import Manifest, read_manifest
from md_export.parity.hops import Hop, hops_of
from md_export.targets import target_of
from md_export.workers import call_worker


@dataclass(frozen=True)
class ModuleError:
    """How far one torch module's output is off inside an artifact.

    Attributes:
        path: of the module in the rewritten component; empty for the component itself.
        kind: its class.
        cumulative_snr_db: the artifact's value against torch's own.
        local_snr_db: the artifact's value against what the module makes of the artifact's own input.
        peak: largest magnitude of the artifact's value.
        alone_snr_db: of the component's output in torch if nothing but this module's local error were wrong; None
            where that was not tried.
    """

    path: str
    kind: str
    cumulative_snr_db: float
    local_snr_db: float
    peak: float
    alone_snr_db: float | None = None


@dataclass(frozen=True)
class Attribution:
    """Where one artifact loses what it loses.

    Attributes:
        case: the golden case that was followed, the artifact's worst.
        snr_db, least_snr_db: of the artifact's output in that case against the golden one, and what the recipe asks.
        hops: the stages from checkpoint to runtime on that case.
        leaves, matched: leaf modules that torch called, and those of them whose value was found in the artifact.
        modules: every module whose value was found, in the order in which torch computes them.
        first: the module to blame, the first of them if there are several; None where none stands out.
        worst: up to ten by local error, worst first.
        advice: what to change in the recipe, a line each.
    """

    component: str
    target: str
    file: str
    case: str
    snr_db: float
    least_snr_db: float
    hops: tuple[Hop, ...]
    leaves: int
    matched: int
    modules: tuple[ModuleError, ...]
    first: ModuleError | None
    worst: tuple[ModuleError, ...]
    advice: tuple[str, ...]


_ATTRIBUTION = TypeAdapter(Attribution)


def attribute(
    artifact: Path, checkpoint_dir: Path, progress: Callable[[str], None] = lambda _: None, lower_again: bool = False
) -> Attribution:
    """Follow an artifact of an export module by module, in a process of its own.

    Args:
        artifact: inside the export's folder, beside its ``manifest.json`` and ``golden``.
        checkpoint_dir: the checkpoint that the export was made from.
        progress: called with what is done.
        lower_again: also convert the component to float32 once more, to tell lowering from quantization.

    Raises:
        ArtifactError: no artifact of an export, or one of another checkpoint.
        GoldenError: the golden cases are unreadable or altered.
        RuntimeFault: the artifact does not run.
    """
    target = target_of(artifact)
    target.require()
    manifest = read_manifest(artifact.parent)
    entry = entry_of(manifest, artifact)
    progress(f"{manifest.target} {entry.component}: module by module")
    request = {
        "out": str(artifact.parent),
        "component": entry.component,
        "checkpoint": str(checkpoint_dir),
    }
    answer = call_worker("attribute", request, RuntimeFault, f"{artifact.name} in the {target.name} runtime")
    found = _ATTRIBUTION.validate_python(answer)
    progress(f"{manifest.target} {entry.component}: hop by hop")
    hops = hops_of(artifact.parent, manifest, entry, found.case, checkpoint_dir, lower_again)
    return dataclasses.replace(found, hops=hops)


def entry_of(manifest: Manifest, artifact: Path) -> ArtifactEntry:
    """The manifest's line on an artifact; ArtifactError where it has none."""
    for entry in manifest.artifacts:
        if entry.file == artifact.name:
            return entry
    known = ", ".join(entry.file for entry in manifest.artifacts)
    raise ArtifactError(f"{artifact.parent} lists no artifact {artifact.name}; it has {known}")
