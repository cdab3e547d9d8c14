"""Verdicts on an export in one runtime: one per component, one on the picture, and the list of failures."""

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
        parity: worst figures over the golden cases; None if a fault prevented them.
        faults: one line each; after verification they are :class:`Fault`, with the check that found them.
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
        picture: None if the export lacks a component, or if no pictures were requested from the runtime.
        runtime: name of the set of kernels or of the phone; "" for the target's own runtime and for the GPU engine.
    """

    target: str
    recipe: str
    cases: int
    components: tuple[ComponentVerdict[Engine], ...]
    picture: PictureVerdict | None = None
    runtime: str = ""

    def with_findings(self, findings: Iterable[Finding]) -> Verdict[Engine]:
        """Return the verdict with these faults added to their components; those of the whole export go to the first."""
        added = by_component(findings, [item.component for item in self.components])
        components = tuple(replace(item, faults=(*item.faults, *added[item.component])) for item in self.components)
        return replace(self, components=components)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line per failure, starting with the component's name."""
        where = f" in {self.runtime}" if self.runtime else ""
        lines = [f"{item.component}{where}: {fault}" for item in self.components for fault in item.faults]
        picture = self.picture.faults if self.picture else ()
        return (*lines, *(f"picture{where}: {fault}" for fault in picture))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults in order, each with its check."""
        texts = [fault for item in (*self.components, self.picture) if item for fault in item.faults]
        return tuple(fault for fault in texts if isinstance(fault, Fault))

    @property
    def passed(self) -> bool:
        """Whether there is no failure."""
        return not self.failures


def by_component(findings: Iterable[Finding], components: Sequence[str]) -> dict[str, tuple[Fault, ...]]:
    """Group the faults by component; faults that concern none of ``components`` go to the first."""
    found: dict[str, tuple[Fault, ...]] = dict.fromkeys(components, ())
    for one in findings:
        name = one.component if one.component in found else components[0]
        found[name] = (*found[name], one.fault)
    return found


def failures_of(verdicts: Iterable[Verdict[Engine]]) -> tuple[str, ...]:
    """Return one line per failure in any of several runtimes."""
    return tuple(line for verdict in verdicts for line in verdict.failures)


@dataclass(frozen=True)
class Verification(Generic[Engine]):
    """A verdict with its manifest, golden cases and pictures.

    Attributes:
        pictures: the artifacts' pictures, ``[H, W, 3]`` in [0, 1], one per golden case; empty if the chain failed.
    """

    manifest: Manifest
    result: Verdict[Engine]
    golden: GoldenSet
    pictures: tuple[Float32, ...]


def with_parity(manifest: Manifest, result: Verdict[None]) -> Manifest:
    """Return the manifest with the verdict's figures for its artifacts and the picture."""
    figures = {item.component: item.parity for item in result.components}
    entries = tuple(replace(entry, parity=figures[entry.component]) for entry in manifest.artifacts)
    picture = result.picture.psnr_db if result.picture else None
    return replace(manifest, artifacts=entries, picture_psnr_db=picture)
