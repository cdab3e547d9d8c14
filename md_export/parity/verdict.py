"""The verdict on an export in one runtime: one per component, one on the picture, and all that falls short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

from md_export.parity.metrics import Fault, Finding
from md_export.spec.artifact import Parity
from md_export.spec.manifest import Manifest
from md_export.spec.recipe import Tolerance
from md_export.spec.tensors import Float32

if TYPE_CHECKING:
    from md_export.parity.golden.folder import GoldenSet
    from md_export.spec.tensors import Float32

# Details of the engine that executed a component: placement, seconds, ops to blame. A target's own runtime has none.
Engine = TypeVar("Engine", default=None)


@dataclass(frozen=True)
class ComponentVerdict(Generic[Engine]):
    """The verdict on one artifact in one runtime.

    Attributes:
        parity: worst figures over the golden cases; None where a fault kept them from being computed.
        faults: one line each; those of a judged export are :class:`Fault`, which know their check.
    """

    component: str
    file: str
    parity: Parity | None
    tolerance: Tolerance
    faults: tuple[str, ...]
    engine: Engine


@dataclass(frozen=True)
class PictureVerdict:
    """The chain's verdict: worst PSNR of the final picture over all cases, peak taken from the reference."""

    psnr_db: float | None
    least_psnr_db: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Verdict(Generic[Engine]):
    """All verdicts on one export in one runtime.

    Attributes:
        picture: None where a component is missing from the export, or the runtime is not asked for pictures.
        runtime: name of the set of kernels or of the phone; "" for the target's own runtime and for the GPU engine.
    """

    target: str
    recipe: str
    cases: int
    components: tuple[ComponentVerdict[Engine], ...]
    picture: PictureVerdict | None = None
    runtime: str = ""

    def with_findings(self, findings: Iterable[Finding]) -> Verdict[Engine]:
        """Return the verdict with these faults too, each with its component, those of the whole with the first."""
        added = by_component(findings, [item.component for item in self.components])
        components = tuple(replace(item, faults=(*item.faults, *added[item.component])) for item in self.components)
        return replace(self, components=components)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each thing that falls short, the component's name first."""
        where = f" in {self.runtime}" if self.runtime else ""
        lines = [f"{item.component}{where}: {fault}" for item in self.components for fault in item.faults]
        picture = self.picture.faults if self.picture else ()
        return (*lines, *(f"picture{where}: {fault}" for fault in picture))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults in order, each of which knows its check."""
        texts = [fault for item in (*self.components, self.picture) if item for fault in item.faults]
        return tuple(fault for fault in texts if isinstance(fault, Fault))

    @property
    def passed(self) -> bool:
        """Whether nothing falls short."""
        return not self.failures


def by_component(findings: Iterable[Finding], components: Sequence[str]) -> dict[str, tuple[Fault, ...]]:
    """Return the faults of each component; what concerns none of them goes with the first."""
    found: dict[str, tuple[Fault, ...]] = dict.fromkeys(components, ())
    for one in findings:
        name = one.component if one.component in found else components[0]
        found[name] = (*found[name], one.fault)
    return found


def failures_of(verdicts: Iterable[Verdict[Engine]]) -> tuple[str, ...]:
    """One line for each thing that falls short in any of several runtimes."""
    return tuple(line for verdict in verdicts for line in verdict.failures)


@dataclass(frozen=True)
class Verification(Generic[Engine]):
    """A verdict and what it was reached on.

    Attributes:
        pictures: the artifacts', ``[H, W, 3]`` in [0, 1], one per golden case; none where the chain broke off.
    """

    manifest: Manifest
    result: Verdict[Engine]
    golden: GoldenSet
    pictures: tuple[Float32, ...]


def with_parity(manifest: Manifest, result: Verdict[None]) -> Manifest:
    """The manifest with the figures by which its artifacts and the picture were judged."""
    figures = {item.component: item.parity for item in result.components}
    entries = tuple(replace(entry, parity=figures[entry.component]) for entry in manifest.artifacts)
    picture = result.picture.psnr_db if result.picture else None
    return replace(manifest, artifacts=entries, picture_psnr_db=picture)
