"""The verdict on an export: one per component, one on the picture, and everything that falls short, line by line."""

from __future__ import annotations

from dataclasses import dataclass

from md_export.models.sampling.generate import Float32
from md_export.parity.golden.folder import GoldenSet
from md_export.parity.metrics import Fault
from md_export.spec.artifact import Parity
from md_export.spec.manifest import Manifest
from md_export.spec.recipe import Tolerance


@dataclass(frozen=True)
class ComponentResult:
    """One artifact's verdict; ``parity`` is None where a fault kept it from being computed.

    ``faults`` of a judged export are :class:`Fault`, which know their check.
    """

    component: str
    file: str
    parity: Parity | None
    tolerance: Tolerance
    faults: tuple[str, ...]


@dataclass(frozen=True)
class PictureResult:
    """The chain's verdict: worst PSNR of the final picture over all cases, peak taken from the reference."""

    psnr_db: float | None
    least_psnr_db: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class VerifyResult:
    """All verdicts of one export; ``picture`` is None where a component is missing from it."""

    target: str
    recipe: str
    cases: int
    components: tuple[ComponentResult, ...]
    picture: PictureResult | None

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each thing that falls short, the component's name first."""
        lines = [f"{item.component}: {fault}" for item in self.components for fault in item.faults]
        picture = self.picture.faults if self.picture else ()
        return (*lines, *(f"picture: {fault}" for fault in picture))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults in order, each of which knows its check."""
        texts = [fault for item in (*self.components, self.picture) if item for fault in item.faults]
        return tuple(fault for fault in texts if isinstance(fault, Fault))

    @property
    def passed(self) -> bool:
        """Whether nothing falls short."""
        return not self.failures


@dataclass(frozen=True)
class Verification:
    """A verdict and what it was reached on.

    Attributes:
        pictures: the artifacts', ``[H, W, 3]`` in [0, 1], one per golden case; none where the chain broke off.
    """

    manifest: Manifest
    result: VerifyResult
    golden: GoldenSet
    pictures: tuple[Float32, ...]
