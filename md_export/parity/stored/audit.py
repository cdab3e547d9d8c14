"""Every weight that an export stores, held against the checkpoint.

Parity says that an artifact computes the right outputs on the golden cases; the audit says that it stores the right
weights. A stored weight is compared with the tensors of the module that reads it, or, where the artifact does not tell
which module that is, with every tensor of its shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from md_export.artifact import GOLDEN_FOLDER, ArtifactEntry, artifact_path
from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError
from md_export.manifest import Manifest, read_manifest
from md_export.parity.opening import check_checkpoint
from md_export.parity.stored.ledger import ComponentAudit, Ledger
from md_export.parity.stored.reference import Reference, prepare_reference
from md_export.targets import TARGETS
from md_export.workers import call_worker


@dataclass(frozen=True)
class AuditResult:
    """All artifacts of one export."""

    target: str
    recipe: str
    components: tuple[ComponentAudit, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each thing that is wrong, the component's name first."""
        return tuple(f"{item.component}: {fault}" for item in self.components for fault in item.faults)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.failures


_COMPONENT = TypeAdapter(ComponentAudit)


def audit(out: Path, checkpoint_dir: Path, progress: Callable[[str], None] = lambda _: None) -> AuditResult:
    """Audit every artifact of the export in ``out``, one process each.

    Raises:
        ArtifactError: the manifest is unreadable, an artifact is missing, or the checkpoint is another one.
        CheckpointError: the checkpoint cannot be read.
        MissingExtraError: the target's libraries are not installed.
    """
    manifest = read_manifest(out)
    TARGETS[manifest.target].require()
    check_checkpoint(manifest, open_checkpoint(checkpoint_dir))
    found = []
    for entry in manifest.artifacts:
        progress(f"audit {manifest.target} {entry.component}")
        request = {"out": str(out), "checkpoint": str(checkpoint_dir), "component": entry.component}
        answer = call_worker("audit", request, ArtifactError, f"{entry.file}: reading its weights")
        found.append(_COMPONENT.validate_python(answer))
    return AuditResult(manifest.target, manifest.recipe.name, tuple(found))


def audit_in_worker(out: Path, checkpoint_dir: Path, component: str) -> ComponentAudit:
    """What :func:`audit` does for one component inside a worker process; the checkpoint has been checked."""
    manifest = read_manifest(out)
    reference = prepare_reference(open_checkpoint(checkpoint_dir), manifest.recipe, component, out / GOLDEN_FOLDER)
    return audit_component(out, manifest, manifest.entry_for(component), reference)


def audit_component(out: Path, manifest: Manifest, entry: ArtifactEntry, reference: Reference) -> ComponentAudit:
    """Audit one artifact in this process; ``reference`` may serve any number of times.

    Raises:
        ArtifactError, RuntimeFault: the artifact is missing or cannot be read.
    """
    scheme = manifest.recipe.schemes[entry.component]
    target = TARGETS[manifest.target].open()
    ledger = Ledger(reference, scheme)
    for weight in target.stored_weights(artifact_path(out, entry), scheme):
        ledger.add(weight)
    return ledger.close(entry)
