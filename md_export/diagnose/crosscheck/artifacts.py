"""Compare two artifacts of one component, each in its own runtime, on the same golden inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.diagnose.attribution.attribute import blame, entry_of
from md_export.engine.hops import Part, opened
from md_export.errors import ArtifactError, RuntimeFault, UsageError
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import each_call
from md_export.parity.metrics import snr_db
from md_export.spec.artifact import ArtifactEntry, artifact_path
from md_export.spec.manifest import read_manifest
from md_export.spec.tensors import Array, joined
from md_export.system.isolation import isolated
from md_export.targets import TARGETS, target_of

# Two correct float16 runtimes round in different orders, so one may be worse on a module by this many dB.
APART_DB: Final = 10.0
# At this SNR in dB, a value is correct within float32 rounding.
_RIGHT_DB: Final = 100.0


@dataclass(frozen=True)
class CaseRow:
    """SNR in one golden case: of each artifact's output against the golden one, and of one output against the other."""

    case: str
    first_db: float
    second_db: float
    between_db: float


@dataclass(frozen=True)
class ModuleRow:
    """Local error of one torch module in each artifact, on that artifact's input of the module."""

    path: str
    kind: str
    first_db: float
    second_db: float

    @property
    def apart_db(self) -> float:
        """Difference of the SNRs in dB; positive if the first is better."""
        return min(self.first_db, _RIGHT_DB) - min(self.second_db, _RIGHT_DB)


@dataclass(frozen=True)
class Crosscheck:
    """Comparison of two artifacts.

    Attributes:
        component: component of both.
        files: names of the artifacts.
        schemes: weights and activations of each.
        cases: all golden cases.
        followed: the case in which the two differ most, which ``modules`` are compared in.
        modules: modules found in both, in order of computation.
    """

    component: str
    files: tuple[str, str]
    schemes: tuple[str, str]
    cases: tuple[CaseRow, ...]
    followed: str
    modules: tuple[ModuleRow, ...]

    @property
    def disagreements(self) -> tuple[ModuleRow, ...]:
        """Modules where one artifact is worse than the other by more than the order of rounding explains."""
        found = [row for row in self.modules if abs(row.apart_db) > APART_DB]
        return tuple(sorted(found, key=lambda row: -abs(row.apart_db)))


@dataclass(frozen=True)
class Pair:
    """Two artifacts of one component, and the checkpoint that both were exported from."""

    first: Path
    second: Path
    checkpoint: Path


def crosscheck(
    first: Path, second: Path, checkpoint: Path, progress: Callable[[str], None] = lambda _: None
) -> Crosscheck:
    """Compare two artifacts of one component, in a separate process.

    Args:
        first, second: paths of the artifacts in their exports' folders, of any two targets.
        checkpoint: the checkpoint that both exports were made from.
        progress: called with a line for each step.

    Raises:
        UsageError: the components differ, or both paths are the same.
        ArtifactError: one is not part of an export, or the exports differ in checkpoint or golden cases.
        RuntimeFault: one of them does not run.
    """
    for path in (first, second):
        target_of(path).require()
    _check_pair(first, second)
    progress(f"{first.name} and {second.name}: every golden case, then module by module")
    return isolated(crosscheck_pair, RuntimeFault, "the crosscheck")(Pair(first, second, checkpoint))


def _check_pair(first: Path, second: Path) -> None:
    manifests = [read_manifest(path.parent) for path in (first, second)]
    one, other = (entry_of(manifest, path) for manifest, path in zip(manifests, (first, second), strict=True))
    if first.resolve() == second.resolve():
        raise UsageError(f"{first} was given twice; give two artifacts of one component")
    if one.component != other.component:
        raise UsageError(
            f"{first.name} is the {one.component}, {second.name} the {other.component}; give two of one component"
        )
    if manifests[0].golden_sha256 != manifests[1].golden_sha256:
        raise ArtifactError(
            f"{first.parent} and {second.parent} have different golden cases; export both with the same --golden folder"
        )


def crosscheck_pair(pair: Pair) -> Crosscheck:
    """Compare two artifacts in this process; the pair has been checked."""
    sides = [_Side(path, pair.checkpoint) for path in (pair.first, pair.second)]
    rows = [_case_row(case, *sides) for case in each_call(sides[0].entry.component, sides[0].cases)]
    followed = min(rows, key=lambda row: row.between_db).case
    one, other = (side.modules(followed) for side in sides)
    return Crosscheck(
        component=sides[0].entry.component,
        files=(pair.first.name, pair.second.name),
        schemes=(sides[0].scheme, sides[1].scheme),
        cases=tuple(rows),
        followed=followed,
        modules=tuple(
            ModuleRow(path, kind, found, other[path][1]) for path, (kind, found) in one.items() if path in other
        ),
    )


class _Side:
    """One opened artifact of the two."""

    def __init__(self, path: Path, checkpoint: Path) -> None:
        manifest = read_manifest(path.parent)
        self.entry: ArtifactEntry = entry_of(manifest, path)
        self.manifest, self.part, self.cases = opened(Part(path.parent, self.entry.component, checkpoint))
        self.path = artifact_path(path.parent, self.entry)
        self.runner = TARGETS[manifest.target].open().load(self.path)
        self.scheme = f"{self.entry.weights} weights, {self.entry.activations} activations"

    def output(self, case: GoldenCase) -> tuple[Array, Array]:
        """Return the artifact's output and the golden output in the artifact's layout."""
        return joined(self.runner.run(self.part.inputs_of(case))), self.part.output_of(case)

    def modules(self, case: str) -> Mapping[str, tuple[str, float]]:
        """Return class and local SNR of each module that was found, by path."""
        cases = [item for item in each_call(self.entry.component, self.cases) if item.name == case]
        found = blame(self.manifest, self.entry, self.path, self.part, cases)
        return {item.path: (item.kind, item.local_snr_db) for item in found.modules if item.path}


def _case_row(case: GoldenCase, first: _Side, second: _Side) -> CaseRow:
    (one, golden), (other, same) = first.output(case), second.output(case)
    if one.shape != other.shape:
        raise ArtifactError(
            f"{first.path.name} and {second.path.name} have different layouts; export both without --layout"
        )
    return CaseRow(case.name, snr_db(one, golden), snr_db(other, same), snr_db(other, one))
