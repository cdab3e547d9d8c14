"""Steps of a sampling method; each is linear in x, the UNet's output, the previous estimate of x0, and new noise."""

from __future__ import annotations

from dataclasses import dataclass

from md_export.spec.sampler import Step

# Factors of x and of the UNet's output.
Linear = tuple[float, float]


@dataclass(frozen=True)
class Trajectory:
    """Constants of all steps, starting with the noisiest, and the factor of the initial noise."""

    steps: tuple[Step, ...]
    start: float = 1.0


def weighted(*terms: tuple[float, Linear]) -> Linear:
    """Return the sum of linear terms, each multiplied by its factor."""
    of_x, of_output = (sum(float(factor * term[place]) for factor, term in terms) for place in (0, 1))
    return of_x, of_output
