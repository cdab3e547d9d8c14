"""All components of a checkpoint as torch modules, run on golden cases up to the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np

from md_export.checkpoint import open_checkpoint
from md_export.models.families import family_of
from md_export.models.sampling.sampler import Sampler, one_step
from md_export.models.values import MADE
from md_export.models.walk import Steps, Tensors, walk
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import packed, unpacked
from md_export.parity.rewritten_module import Rewritten, rewritten
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import Array, Arrays, joined
from md_export.targets import TARGETS


class Probe:
    """All components as torch modules, with measurements of their outputs on golden cases."""

    def __init__(self, checkpoint_dir: Path, recipe: Recipe, cases: Sequence[GoldenCase]) -> None:
        checkpoint = open_checkpoint(checkpoint_dir)
        self.target = TARGETS[recipe.target].open()
        self.recipe = recipe
        self.cases = cases
        self._family = family_of(checkpoint.config)
        self._rows = self._family.required
        self._computed = ("sampler.", *(f"{row.name}." for row in self._rows))
        self.parts: dict[str, Rewritten] = {row.name: rewritten(checkpoint, row.name, recipe) for row in self._rows}
        self._sampler = Sampler(one_step(checkpoint.config))

    def noises(self, component: str) -> tuple[float, float]:
        """Return the noise power of the picture and of the component's output, as means over the cases.

        The former is relative to the squared peak of the picture, the latter to the power of the output. The component
        gets its golden inputs, and later components get its output.
        """
        figures = [self._noises(component, case) for case in self.cases]
        picture, own = (float(np.mean(values)) for values in zip(*figures, strict=True))
        return picture, own

    def pictures(self) -> Iterator[tuple[Array, Array]]:
        """Yield for each case the picture that the parts compute from its tokens, and the golden picture."""
        for case in self.cases:
            yield self._picture(case, {}), case.picture

    def units(self, component: str, case: GoldenCase) -> tuple[float, float]:
        """Return the squared peak of the case's picture, and the power of the component's output in it."""
        peak = float(np.max(np.abs(case.picture))) ** 2
        power = float(np.mean(self.parts[component].output_of(case).astype(np.float64) ** 2))
        return max(peak, _LEAST), max(power, _LEAST)

    def inputs_after(self, component: str, case: GoldenCase, outputs: Arrays) -> dict[tuple[str, str], Array]:
        """Return the inputs of all later components, by component and name, if ``component`` gives ``outputs``.

        All other components give their golden outputs.
        """
        walked = self._walk(
            case, {**{name: part.wanted(case) for name, part in self.parts.items()}, component: outputs}
        )
        names = list(self.parts)
        later = names[names.index(component) + 1 :]
        return {(name, given): value for name in later for given, value in walked.taken[name].items()}

    def picture_slope(self, component: str, case: GoldenCase) -> Array | None:
        """Return the derivative of the picture's elements by those of the component's output; None if it has no image.

        The picture is the image, halved and clipped: its slope is 1/2 inside and 0 beyond.
        """
        is_image = component == self._family.image.node
        return np.where(np.abs(self.parts[component].output_of(case)) < 1, 0.5, 0.0) if is_image else None

    def _noises(self, component: str, case: GoldenCase) -> tuple[float, float]:
        part = self.parts[component]
        answers, wanted = part.answers(part.inputs_of(case)), part.output_of(case)
        before = takewhile(lambda name: name != component, self.parts)
        recorded = {name: self.parts[name].wanted(case) for name in before}
        picture = self._picture(case, {**recorded, component: answers})
        peak, power = self.units(component, case)
        return _error(picture, case.picture) / peak, _error(joined(answers), wanted) / power

    def _picture(self, case: GoldenCase, recorded: Mapping[str, Arrays]) -> Array:
        return self._walk(case, recorded).values[MADE.key]

    def _walk(self, case: GoldenCase, recorded: Mapping[str, Arrays]) -> _Walked:
        """Compute the picture of a case; ``recorded`` outputs are used instead of running their components."""
        given = {key: value for key, value in case.values.items() if not key.startswith(self._computed)}
        parts = _Parts(self.parts, recorded)
        (values,) = walk(self._family, self._rows, parts, [given], self._sampler)
        return _Walked(values, parts.taken)


@dataclass(frozen=True)
class _Walked:
    """Values on the way to a picture, and the inputs of each component under the names of its artifacts."""

    values: Tensors
    taken: Mapping[str, Arrays]


@dataclass(frozen=True)
class _Parts:
    """Runs rewritten modules, or returns recorded outputs for some of them; ``taken``: the last inputs of each."""

    parts: Mapping[str, Rewritten]
    recorded: Mapping[str, Arrays]
    taken: dict[str, Arrays] = field(default_factory=dict)

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Run a module, or return its recorded output."""
        part, known, made = self.parts[component], self.recorded.get(component), []
        for batch in batches:
            self.taken[component] = packed(part.recipe, part, batch)
            made.append(part.answers(self.taken[component]) if known is None else known)
        return [unpacked(part.recipe, part, outputs) for outputs in made]

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """Run the sampling step for all pictures."""
        steps.take(self.run, pictures)


# Lower limit of a power used as a divisor, so that an all-zero output causes no division by zero.
_LEAST = 1e-30


def _error(made: Array, wanted: Array) -> float:
    return float(np.mean((made.astype(np.float64) - wanted.astype(np.float64)) ** 2))
