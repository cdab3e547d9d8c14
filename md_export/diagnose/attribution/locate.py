"""Find the module to blame: the first whose error no precision explains, or whose error alone fails the component.

A module that costs much locally may cost the component nothing: softmax over large scores in float16 has 15 dB in
the nano UNet's last attention, and the output keeps 90 dB. Hence each module's error is carried to the output before
the module is blamed, unless it owns parameters and computes something else altogether.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from md_export.diagnose.attribution.walk import Seen, Walker
from md_export.spec.tensors import Arrays
from md_export.targets.contract import Step

WORST = 10
# An error of half the signal's amplitude: palettes of 4 values leave 9 dB of a normal distribution, of 16 values 20 dB.
SOMETHING_ELSE_DB = 6.0
# If torch's value replaces one that other modules read, the SNR of at least one of them drops by more than this.
_WORSE_BY_DB = 3.0
# A value with at least this SNR is right within float32 rounding.
_RIGHT_DB = 100.0


@dataclass
class Located:
    """Result of the search in one artifact.

    Attributes:
        seen: every module whose output was found, by path, in order of completion.
        alone: for each module that was tried, SNR of the component's output with that module's error alone.
        first: path of the module to blame; None if no single module is.
    """

    seen: dict[str, Seen]
    alone: dict[str, float] = field(default_factory=dict)
    first: str | None = None

    @property
    def worst(self) -> list[str]:
        """Paths of the modules with the largest local error, worst first."""
        return sorted(self.seen, key=lambda path: self.seen[path].local_snr_db)[:WORST]


class Search:
    """Search for the module to blame, given a walker, an artifact's operations and values, and the least SNR."""

    def __init__(self, walker: Walker, steps: tuple[Step, ...], values: Arrays, least_snr_db: float) -> None:
        self._walker = walker
        self._candidates: Mapping[str, tuple[str, ...]] = walker.candidates(steps)
        self._values = values
        self._least = least_snr_db
        self._hidden: set[str] = set()

    def locate(self) -> Located:
        """Find the module to blame.

        A module is to blame if its local error alone, carried to the output, brings the component below the recipe's
        threshold, or if it owns parameters and its local SNR is below 6 dB. If there is no such module and the artifact
        still falls short, the module to blame is the one without whose error the artifact would pass. A value that a
        converter merged with its neighbour is no module's output: see :meth:`_is_merged`.
        """
        found = Located(self._walk())
        while (merged := self._blame(found)) is not None:
            self._hidden.add(merged)
            found = Located(self._walk())
        return found

    def _blame(self, found: Located) -> str | None:
        """Fill in each suspect's cost and the first to blame; return the path of a merged module if one was found."""
        for path in self._suspects(found):
            seen = found.seen[path]
            found.alone[path] = self._walker.alone(seen)
            something_else = path in self._walker.owners and not seen.local_snr_db >= SOMETHING_ELSE_DB
            guilty = something_else or not found.alone[path] >= self._least
            if guilty and self._is_merged(path, found):
                return path
            found.first = path if guilty and found.first is None else found.first
        found.first = found.first if found.first is not None else self._largest_share(found)
        return None

    def _walk(self) -> dict[str, Seen]:
        return self._walker.walk(self._values, self._candidates, self._hidden)

    def _suspects(self, found: Located) -> list[str]:
        """Return the paths of the modules to try, in order of completion: the worst, and all below the least SNR."""
        worst = set(found.worst)
        return [path for path, seen in found.seen.items() if path in worst or not seen.local_snr_db >= self._least]

    def _is_merged(self, path: str, found: Located) -> bool:
        """Whether other modules do not read a bad value: with torch's value in its place none of them gets worse.

        Cause: an activation was merged into the convolution before it, or a factor was folded into its weights.
        """
        seen = found.seen[path]
        if not path or seen.local_snr_db >= self._least or not bool(seen.error.isfinite().all()):
            return False
        without = self._walker.walk(self._values, self._candidates, {*self._hidden, path})
        return not any(
            other.local_snr_db < min(found.seen[name].local_snr_db, _RIGHT_DB) - _WORSE_BY_DB
            for name, other in without.items()
        )

    def _largest_share(self, found: Located) -> str | None:
        """Return the worst module if the component would pass without its error, else None.

        Noise powers of independent errors add up.
        """
        if not found.alone or "" not in found.seen:
            return None
        path = min(found.alone, key=lambda name: found.alone[name])
        total, allowed = _noise(found.seen[""].cumulative_snr_db), _noise(self._least)
        return path if total > allowed >= total - _noise(found.alone[path]) else None


def _noise(snr_db: float) -> float:
    """Return the noise power at an SNR in dB, for a signal of power 1."""
    return float(10.0 ** (-snr_db / 10.0))
