"""Compare every weight that an export stores with the checkpoint.

Parity shows that an artifact computes the right outputs on the golden cases; the audit shows that it stores the right
weights. A stored weight is compared with the tensors of the module that reads it. If the artifact does not record that
module, the weight is compared with every tensor of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Final

from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError
from md_export.parity.metrics import Finding, snr_db
from md_export.parity.opened_export import SPARSITY_SLACK, check_checkpoint
from md_export.parity.verdict import by_component
from md_export.parity.weights.reference import Mismatch, Reference, Wanted, match, prepare_reference
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, artifact_path
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.scheme import QuantScheme, stored_type
from md_export.system.isolation import isolated
from md_export.targets import TARGETS
from md_export.targets.stored import StoredWeight, squeezed

_MOST_FAULTS: Final = 20
# An unmatched constant with at least this many elements is not a list of sizes or axes.
_LEAST_TABLE: Final = 16


@dataclass(frozen=True)
class Unmatched:
    """A stored constant that matches no tensor of the checkpoint: derived by a converter, or unknown."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class WeightError:
    """Error of a stored weight against the checkpoint's tensor that it stores."""

    name: str
    dtype: str
    bytes: int
    snr_db: float


@dataclass(frozen=True)
class ComponentAudit:
    """Audit of one artifact's stored weights.

    Attributes:
        requested: type of weights in the scheme.
        as_requested: bytes of the weights that the scheme covers and that are stored in the requested type.
        promised: bytes of all weights that the scheme covers.
        stored: bytes of all constants by type.
        proven: bytes of constants that equal a tensor of the checkpoint, within the scheme's rounding.
        errors: errors of these constants, in the file's order.
        unmatched: constants that equal no tensor of the checkpoint, largest first.
        folded: tensors of the checkpoint that a rewrite folded into others.
        missing: tensors of the checkpoint that are not in the artifact.
        faults: what is wrong, one line each.
    """

    component: str
    file: str
    requested: str
    as_requested: int
    promised: int
    stored: dict[str, int]
    proven: int
    errors: tuple[WeightError, ...]
    unmatched: tuple[Unmatched, ...]
    folded: tuple[str, ...]
    missing: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes of all constants."""
        return sum(self.stored.values())

    @property
    def proven_share(self) -> float:
        """Share of the bytes of all constants that are proven, 0 to 1."""
        return self.proven / max(1, self.total)


class Ledger:
    """Collects the results of one audit, weight by weight."""

    def __init__(self, reference: Reference, scheme: QuantScheme) -> None:
        self._reference = reference
        self._scheme = scheme
        self._stored: dict[str, int] = {}
        self._proven = self._promised = self._as_requested = 0
        self._found: set[str] = set()
        self._accused: set[str] = set()
        self._met: set[str] = set()
        self._errors: list[WeightError] = []
        self._unmatched: list[Unmatched] = []
        self._faults: list[str] = []

    def add(self, weight: StoredWeight) -> None:
        """Match one stored weight with the reference and record the result."""
        for dtype, size in weight.parts.items():
            self._stored[dtype] = self._stored.get(dtype, 0) + size
        result = match(weight, self._reference)
        for mismatch in result.mismatches:
            self._accuse(weight, mismatch)
        if result.mismatches:
            return
        if not result.tensors and not result.neutral:
            self._unmatched.append(Unmatched(weight.name, weight.dtype, weight.values.shape, weight.nbytes))
            return
        self._proven += weight.nbytes
        self._met |= {tensor.name for tensor in result.tensors}
        self._errors += [
            WeightError(tensor.name, weight.dtype, weight.nbytes, snr_db(weight.values, tensor.values))
            for tensor in result.tensors
        ]
        self._found |= {name for tensor in result.tensors for name in tensor.proves}
        fault = self._type_fault(weight, result.tensors)
        if fault:
            self._faults.append(f"{result.tensors[0].name} {fault}")

    def _accuse(self, weight: StoredWeight, mismatch: Mismatch) -> None:
        """Record a mismatch as a fault; if the stored type was not requested, report that instead of wrong values."""
        tensor = mismatch.tensor
        self._accused |= set(tensor.proves)
        fault = self._type_fault(weight, (tensor,))
        self._faults.append(
            f"{tensor.name} {fault}" if fault else f"{tensor.name}, stored as {weight.dtype}: {mismatch.misfit.text}"
        )

    def _type_fault(self, weight: StoredWeight, tensors: tuple[Wanted, ...]) -> str | None:
        owners = {tensor.module for tensor in tensors}
        free = any(owner in self._reference.norms or self._scheme.keeps_float(owner) for owner in owners)
        if not weight.promised or free or not owners:
            return None
        # A fault unless it is stored as at least one of the modules that read it requires.
        fault = min(type_fault(weight, self._scheme.for_module(owner)) or "" for owner in owners) or None
        self._promised += weight.nbytes
        self._as_requested += 0 if fault else weight.nbytes
        return fault

    def close(self, entry: ArtifactEntry) -> ComponentAudit:
        """Return the audit of the artifact."""
        reference = self._reference
        missing = tuple(sorted(reference.parameters - self._found - self._accused))
        faults = [*self._faults, *(f"{name} is nowhere in the artifact" for name in missing), *self._strangers()]
        if len(faults) > _MOST_FAULTS:
            faults = [*faults[:_MOST_FAULTS], f"and {len(faults) - _MOST_FAULTS} more"]
        return ComponentAudit(
            component=entry.component,
            file=entry.file,
            requested=" and ".join(self._scheme.all_weights),
            as_requested=self._as_requested,
            promised=self._promised,
            stored=dict(sorted(self._stored.items())),
            proven=self._proven,
            errors=tuple(self._errors),
            unmatched=tuple(sorted(self._unmatched, key=lambda item: -item.bytes)),
            folded=tuple(sorted(reference.folded)),
            missing=missing,
            faults=tuple(faults),
        )

    def _strangers(self) -> Iterator[str]:
        """Yield faults for unmatched constants whose shape is that of a missing table, such as a mask."""
        for item in self._unmatched:
            alike = self._reference.by_shape.get(squeezed(item.shape), []) if prod(item.shape) >= _LEAST_TABLE else []
            lost = [wanted.name for wanted in alike if wanted.name not in self._met and not wanted.is_parameter]
            if lost:
                yield f"{item.name} is not {' or '.join(lost)}, which is nowhere in the artifact"


def type_fault(weight: StoredWeight, scheme: QuantScheme) -> str | None:
    """Return how a weight's stored form differs from its scheme; None if it does not."""
    if weight.dtype != stored_type(scheme.weights):
        return f"is stored as {weight.dtype}, {scheme.weights} was requested"
    if scheme.sparsity is None:
        return None
    share = 1.0 if weight.kept is None else float(weight.kept.mean())
    if share > 1 - scheme.sparsity + SPARSITY_SLACK:
        return f"stores {share:.0%} of its values, a sparsity of {scheme.sparsity:g} was requested"
    return None


@dataclass(frozen=True)
class AuditResult:
    """Audits of all artifacts of one export."""

    target: str
    recipe: str
    components: tuple[ComponentAudit, ...]

    def with_findings(self, findings: Iterable[Finding]) -> AuditResult:
        """Return the result with these faults added to their components; faults of the whole export go to the first."""
        added = by_component(findings, [item.component for item in self.components])
        components = tuple(replace(item, faults=(*item.faults, *added[item.component])) for item in self.components)
        return replace(self, components=components)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each fault, starting with the component's name."""
        return tuple(f"{item.component}: {fault}" for item in self.components for fault in item.faults)

    @property
    def passed(self) -> bool:
        """Whether no artifact has a fault."""
        return not self.failures


@dataclass(frozen=True)
class AuditJob:
    """One component of the export in ``out``, and the checkpoint that the export was made from."""

    out: Path
    checkpoint: Path
    component: str


def audit(out: Path, checkpoint_dir: Path, progress: Callable[[str], None] = lambda _: None) -> AuditResult:
    """Audit every artifact of the export in ``out``, each in a separate process.

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
        read = isolated(audit_part, ArtifactError, f"{entry.file}: reading its weights")
        found.append(read(AuditJob(out, checkpoint_dir, entry.component)))
    return AuditResult(manifest.target, manifest.recipe.name, tuple(found))


def audit_part(job: AuditJob) -> ComponentAudit:
    """Audit one component in this process; the checkpoint has been checked."""
    manifest, checkpoint = read_manifest(job.out), open_checkpoint(job.checkpoint)
    reference = prepare_reference(checkpoint, manifest.recipe, job.component, job.out / GOLDEN_FOLDER)
    return audit_component(job.out, manifest, manifest.entry_for(job.component), reference)


def audit_component(out: Path, manifest: Manifest, entry: ArtifactEntry, reference: Reference) -> ComponentAudit:
    """Audit one artifact in this process; ``reference`` can be used several times.

    Raises:
        ArtifactError, RuntimeFault: the artifact is missing or cannot be read.
    """
    scheme = manifest.recipe.schemes[entry.component]
    target = TARGETS[manifest.target].open()
    ledger = Ledger(reference, scheme)
    for weight in target.stored_weights(artifact_path(out, entry), scheme):
        ledger.add(weight)
    return ledger.close(entry)
