"""Measurements of the noise that forms of modules add, as workers return them and a journal keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from md_export.engine.search.frontier import Form, Module

_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
# As in Candidate.
Noise = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Pass:
    """Measurement of one module in one form; None for both noises if they are NaN or infinite.

    Attributes:
        noise, own_noise: as in :class:`Candidate`.
    """

    __pydantic_config__ = _FORBID

    component: str
    path: str
    form: Form
    noise: Noise | None
    own_noise: Noise | None

    def __post_init__(self) -> None:
        """Raise ValueError if one noise is missing and the other is not."""
        if (self.noise is None) != (self.own_noise is None):
            raise ValueError(f"{self} is no measurement")

    @property
    def key(self) -> tuple[str, str, str]:
        """Component, module path and form's label."""
        return self.component, self.path, self.form.label


@dataclass(frozen=True)
class Sample:
    """Samples of the noise powers of all modules and forms in one direction.

    Attributes:
        direction: number of the direction, which is the seed of v and chooses the case.
        noise, own_noise: samples of :attr:`Candidate.noise` and :attr:`Candidate.own_noise` for each module of
            :func:`list_modules` and each of its forms that are not float, in this order.
    """

    __pydantic_config__ = _FORBID

    direction: int
    noise: tuple[Noise, ...]
    own_noise: tuple[Noise, ...]

    @property
    def key(self) -> tuple[str, str]:
        """Name of the measurement."""
        return "direction", f"{self.direction}"


def with_means(modules: Sequence[Module], taken: Sequence[Sample]) -> tuple[Module, ...]:
    """Return the listed modules with the means of the samples as their noise."""
    noise = iter(np.mean([one.noise for one in taken], axis=0).tolist())
    own = iter(np.mean([one.own_noise for one in taken], axis=0).tolist())
    return tuple(
        replace(
            module,
            candidates=tuple(
                one if one.form.is_float else replace(one, noise=next(noise), own_noise=next(own))
                for one in module.candidates
            ),
        )
        for module in modules
    )
