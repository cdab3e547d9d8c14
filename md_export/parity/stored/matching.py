"""Which tensor of the checkpoint a stored weight is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from md_export.parity.stored.reference import Reference, Wanted
from md_export.parity.stored.rounding import Misfit, misfit
from md_export.targets.stored import StoredWeight, Use, squeezed


@dataclass(frozen=True)
class Mismatch:
    """The tensor that a weight should be, or comes closest to where the module has several, and what is wrong."""

    tensor: Wanted
    misfit: Misfit


@dataclass(frozen=True)
class Match:
    """What a stored weight was found to be.

    Attributes:
        tensors: those that it equals within rounding, one for each module that reads it; none where it is unknown.
        neutral: it is a bias of zeros or a factor of ones, which a converter writes where a layer has none.
        mismatches: why it is not what a module that reads it has.
    """

    tensors: tuple[Wanted, ...]
    neutral: bool
    mismatches: tuple[Mismatch, ...]


def match(weight: StoredWeight, reference: Reference) -> Match:
    """Compare with what the reading modules have; where none has a tensor of this shape, with all of them."""
    alike = [] if _counts(weight) else reference.by_shape.get(squeezed(weight.values.shape), [])
    found: list[Wanted] = []
    mismatches: list[Mismatch] = []
    neutral = [use for use in weight.uses if _does_nothing(weight, use)]
    known = False
    for use in weight.uses:
        candidates = [] if use in neutral else _candidates(use, alike)
        if not candidates:
            continue
        known = True
        fitting, wrong = _first_fit(weight, candidates)
        found += fitting
        mismatches += wrong
    if not known and not neutral:
        found, _ = _first_fit(weight, alike)
    return Match(tuple(found), bool(neutral), tuple(mismatches))


def _counts(weight: StoredWeight) -> bool:
    """Whether it is a shape or axes: whole numbers without a step, such as the four sizes that a reshape reads."""
    return weight.dtype in ("int32", "int64", "bool") and weight.grid is None and weight.palette is None


def _does_nothing(weight: StoredWeight, use: Use) -> bool:
    """Whether it adds zeros or multiplies with ones; a true bias or factor is missing then."""
    neutral = {"bias": 0.0, "weight": 1.0}.get(use.role)
    return neutral is not None and bool((weight.values == neutral).all())


def _candidates(use: Use, alike: Iterable[Wanted]) -> list[Wanted]:
    own = [item for item in alike if item.module in use.modules]
    return [item for item in own if not use.role or item.role in (use.role, "")]


def _first_fit(weight: StoredWeight, candidates: Iterable[Wanted]) -> tuple[list[Wanted], list[Mismatch]]:
    """The first tensor that the weight equals, or what is wrong with it as the closest of them."""
    mismatches: list[Mismatch] = []
    for item in candidates:
        found = misfit(weight, item.values)
        if found is None:
            return [item], []
        mismatches.append(Mismatch(item, found))
    return [], sorted(mismatches, key=lambda item: item.misfit.values)[:1]
