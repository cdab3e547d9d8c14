"""One artifact of an export with its golden cases; this code judges its outputs in every runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from md_export.models.families import family_named
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import each_call, golden_inputs, golden_outputs, named
from md_export.parity.metrics import Check, Fault, compare, first_fault, guidance_snr_db, worst
from md_export.parity.opened_export import OpenedExport
from md_export.parity.verdict import ComponentVerdict, Engine, PictureVerdict
from md_export.spec.artifact import ArtifactEntry, Parity, artifact_path, is_unchanged
from md_export.spec.manifest import Manifest
from md_export.spec.names import whole_of
from md_export.spec.recipe import Tolerance
from md_export.spec.scheme import QuantScheme, palette_bits
from md_export.spec.tensors import Array, Arrays, Float32


@dataclass(frozen=True)
class Subject:
    """An artifact to judge, and the golden cases to judge it by."""

    export: OpenedExport
    entry: ArtifactEntry
    cases: Sequence[GoldenCase]

    @property
    def path(self) -> Path:
        """The artifact's file or folder."""
        return artifact_path(self.export.out, self.entry)

    @property
    def tolerance(self) -> Tolerance:
        """The recipe's thresholds for the component."""
        return self.export.manifest.recipe.tolerances[self.entry.component]

    def inputs(self) -> list[Arrays]:
        """Return the golden inputs of each case and call.

        Raises:
            ArtifactError: the manifest's names are not the component's.
        """
        return golden_inputs(self.export.manifest.recipe, self.entry, self.cases)

    def wanted(self) -> list[dict[str, Array]]:
        """Return the golden outputs of each case and call.

        Raises:
            ArtifactError: as :meth:`inputs`.
        """
        return golden_outputs(self.export.manifest.recipe, self.entry, self.cases)

    def compare(self, made: Sequence[Arrays]) -> tuple[Parity | None, list[Fault]]:
        """Return the worst figures over all cases and outputs, and a fault for each threshold that is not met.

        If an output cannot be compared, return None and the faults that prevent it.

        Raises:
            ArtifactError: there are several outputs, and their names are not the manifest's.
        """
        wanted, labels = self.wanted(), [call.label for call in each_call(self.entry.component, self.cases)]
        several = len(wanted[0]) > 1
        pairs = [
            (outputs[name], reference, f"{label} {name}" if several else label)
            for outputs, want, label in zip((named(self.entry, item) for item in made), wanted, labels, strict=True)
            for name, reference in want.items()
        ]
        broken = [fault.of(label) for got, want, label in pairs if (fault := first_fault(got, want))]
        if broken:
            return None, broken
        parity = worst([self._figures(got, want) for got, want, _ in pairs])
        faults = shortfalls(parity, self.tolerance)
        most = most_snr_db(self.export.manifest.recipe.schemes[self.entry.component])
        # Every artifact is exact if all outputs are zero, like those of an untrained ControlNet.
        if parity.snr_db > most and any(want.any() for _, want, _ in pairs):
            text = (
                f"snr {parity.snr_db:.4g} dB is above {most:.4g} dB, the most that its scheme allows: the "
                "golden outputs were taken from it; compare them with the checkpoint: md-export verify --checkpoint"
            )
            faults.append(Fault(Check.EXACT, text))
        return parity, faults

    def _figures(self, made: Array, wanted: Array) -> Parity:
        manifest, figures = self.export.manifest, compare(made, wanted)
        node = family_named(manifest.family).denoised.node
        denoises = self.entry.component in (node, whole_of(node))
        if not denoises or manifest.steps is None or not manifest.steps.is_guided:
            return figures
        return dataclasses.replace(figures, guidance_snr_db=guidance_snr_db(made, wanted))

    def verdict(
        self, engine: Engine, faults: Sequence[str] = (), parity: Parity | None = None
    ) -> ComponentVerdict[Engine]:
        """Return the verdict with these faults, preceded by a fault if the artifact's bytes were altered."""
        altered = () if is_unchanged(self.export.out, self.entry) else (_ALTERED,)
        return ComponentVerdict(
            self.entry.component, self.entry.file, parity, self.tolerance, (*altered, *faults), engine
        )


_ALTERED = Fault(Check.BYTES, "its bytes are not those of the manifest; it was altered")


# Rounding to n bits gives 6.02 dB per bit (Bennett 1948). The slack of 60 dB is for parts that stay float, for errors
# that average out and for weights that are on their grid by chance; the best of our recipes is 40 dB below.
_DB_PER_BIT: Final = 6.02
_SLACK_DB: Final = 60.0
_WEIGHT_BITS: Final[Mapping[str, float]] = {"int8": 8, "int4": 4}
_ACTIVATION_BITS: Final[Mapping[str, float]] = {"int8_static": 8, "int8_dynamic": 8, "float16": 11}


def most_snr_db(scheme: QuantScheme) -> float:
    """Return an upper bound of the SNR in dB for the scheme; inf for float weights with float32 activations.

    Weights in float16 set no bound, since the checkpoint's may be float16, too.
    """
    weights = max(float(palette_bits(name) or _WEIGHT_BITS.get(name, math.inf)) for name in scheme.all_weights)
    bits = min(weights, _ACTIVATION_BITS.get(scheme.activations, math.inf))
    return bits * _DB_PER_BIT + _SLACK_DB


def shortfalls(parity: Parity, tolerance: Tolerance) -> list[Fault]:
    """Return a fault for each threshold that is not met; a NaN figure meets none."""
    lines = []
    for name, unit in (("snr_db", " dB"), ("psnr_db", " dB"), ("cosine", "")):
        least, value = getattr(tolerance, name), getattr(parity, name)
        if least is not None and not value >= least:
            lines.append(f"{name.removesuffix('_db')} {value:.4g}{unit} is below the recipe's {least:g}{unit}")
    if tolerance.max_abs is not None and not parity.max_abs <= tolerance.max_abs:
        lines.append(f"max error {parity.max_abs:.4g} is above the recipe's {tolerance.max_abs:g}")
    faults = [Fault(Check.FIGURES, line) for line in lines]
    guided, least_guided = parity.guidance_snr_db, tolerance.guidance_snr_db
    if guided is not None and not guided >= least_guided:
        text = (
            f"snr {guided:.4g} dB of the prompt's effect, which guidance multiplies, is below the "
            f"recipe's guidance_snr_db, {least_guided:g} dB: pictures would not follow the prompt"
        )
        faults.append(Fault(Check.GUIDANCE, text))
    return faults


def judge_picture(manifest: Manifest, cases: Sequence[GoldenCase], pictures: Sequence[Float32]) -> PictureVerdict:
    """Judge a chain's pictures against those of its golden cases; ``pictures`` is empty if the chain failed."""
    least = manifest.recipe.picture_psnr_db
    if not pictures:
        return PictureVerdict(None, least, (Fault(Check.PICTURE, "no picture, because a component failed"),))
    figures = []
    for case, picture in zip(cases, pictures, strict=True):
        fault = first_fault(picture, case.picture)
        if fault:
            return PictureVerdict(None, least, (Fault(Check.PICTURE, f"{case.name}: {fault}"),))
        figures.append(compare(picture, case.picture).psnr_db)
    psnr = float(np.min(figures))
    below = Fault(Check.PICTURE, f"PSNR {psnr:.1f} dB is below the recipe's {least:g} dB")
    return PictureVerdict(psnr, least, () if psnr >= least else (below,))
