"""Find the module to blame for an artifact's error, and suggest recipe changes for it.

It is the first module with an error that no precision explains, or with an error that alone fails the component. A
module with a large local error may not affect the component: softmax over large scores in float16 has 15 dB in the nano
UNet's last attention, and the output keeps 90 dB. Hence each module's error is propagated to the output before the
module is blamed, unless it owns parameters and computes another function.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from md_export.diagnose.attribution.walk import Seen, Walker
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Manifest
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Arrays
from md_export.targets.stored_graph import Step

if TYPE_CHECKING:
    from md_export.diagnose.attribution.attribute import Attribution, ModuleError


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


_MORE_BITS: Final = {
    "palette2": "palette4",
    "palette3": "palette4",
    "palette4": "palette6",
    "palette6": "palette8",
    "int4": "int8",
}


def remedies(
    manifest: Manifest, entry: ArtifactEntry, found: Attribution, owners: Collection[str], altered: bool
) -> tuple[str, ...]:
    """Return one line for each change to try, the surest first; empty if nothing is wrong.

    Args:
        manifest, entry: the export's manifest and its entry for the artifact.
        found: the modules whose output was found, the module to blame, and the modules with the largest local error.
        owners: paths of the modules that own parameters.
        altered: whether the artifact's bytes differ from those in the manifest.
    """
    lines = ["its bytes do not match the manifest: it was altered, export again"] if altered else []
    scheme, first = manifest.recipe.schemes[entry.component], found.first
    if first is not None and first.path in owners and not first.local_snr_db >= SOMETHING_ELSE_DB:
        lines.append(
            f"{_named(first)} computes another function, an error that no precision explains: compare the stored "
            f"weights with md-export audit, and export again"
        )
        return tuple(lines)
    if first is not None:
        lines += _of_precision(entry, scheme.for_module(first.path), found.modules, first, owners)
        return tuple(lines)
    output = next((item for item in found.modules if not item.path), None)
    if output is not None and not output.cumulative_snr_db >= manifest.recipe.tolerances[entry.component].snr_db:
        lines.append(
            f"no single module is to blame: the errors accumulate. {_heaviest(entry, scheme, found.worst, owners)}"
        )
        lines += _finer(entry, scheme)
    return tuple(lines)


def _of_precision(
    entry: ArtifactEntry,
    scheme: QuantScheme,
    modules: tuple[ModuleError, ...],
    first: ModuleError,
    owners: Collection[str],
) -> Iterator[str]:
    if scheme == QuantScheme("float32", "float32"):
        fired = [record.name for record in entry.rewrites if record.fired]
        without = f"leave out its rewrites one at a time ({', '.join(fired)}), or " if fired else ""
        yield f"{_named(first)} is in float32, so precision is not the cause: {without}report the converter"
        return
    if scheme.weights == "float16":
        yield f'{_named(first)} needs more than float16: weights = "float32" and activations = "float32" under ' + (
            f"[scheme.{entry.component}]; md-export lint tells which of its values float16 cannot hold"
        )
        return
    stored = first.path if first.path in owners else _reader(modules, first, owners)
    if stored is not None:
        why = "" if stored == first.path else f", which takes its value from {_named(first)} in {scheme.activations}"
        yield f"keep {stored} in float{why}: {_keep(entry, scheme, [stored])}"
    yield from _finer(entry, scheme)


def _finer(entry: ArtifactEntry, scheme: QuantScheme) -> Iterator[str]:
    table = f"[scheme.{entry.component}]"
    if scheme.granularity == "tensor" and not scheme.palette_bits and not scheme.weights.startswith("float"):
        yield f'one scale for each output channel: granularity = "channel" under {table}'
    if scheme.block_size:
        yield f"smaller blocks: block_size = {max(2, scheme.block_size // 2)} under {table}"
    if scheme.palette_bits and scheme.group_size is None:
        yield f'a table for every 16 output channels: granularity = "group" and group_size = 16 under {table} (iOS 18)'
    if scheme.sparsity is not None:
        yield f"fewer zeros than sparsity = {scheme.sparsity:g} under {table}"
    if scheme.weights in _MORE_BITS:
        yield f'more bits: weights = "{_MORE_BITS[scheme.weights]}" under {table}'
    if scheme.is_static:
        floats = "activations in float16 or float32"
        yield f"{floats} instead of {scheme.activations} under {table}, if the target supports that"


def _heaviest(
    entry: ArtifactEntry, scheme: QuantScheme, worst: tuple[ModuleError, ...], owners: Collection[str]
) -> str:
    """Return advice to keep the weights that cost the output most in float, or to use a wider type."""
    if all(storage.keeps_weights for storage in scheme.storages):
        return "Use a wider type"
    tried = [item for item in worst if item.path in owners and item.alone_snr_db is not None]
    heavy = [item.path for item in sorted(tried, key=lambda item: item.alone_snr_db or 0.0)[:3]]
    return f"Modules with the largest cost: {_keep(entry, scheme, heavy)}" if heavy else "Use a wider type"


def _keep(entry: ArtifactEntry, scheme: QuantScheme, paths: list[str]) -> str:
    globs = ", ".join(f'"{glob}"' for glob in (*scheme.keep_float, *paths))
    return f"keep_float = [{globs}] under [scheme.{entry.component}]"


def _reader(modules: tuple[ModuleError, ...], first: ModuleError, owners: Collection[str]) -> str | None:
    """Return the path of the next module with parameters; None if no such module follows.

    The output of a module without parameters is stored in the type of the module that reads it.
    """
    after = modules[modules.index(first) + 1 :]
    return next((item.path for item in after if item.path in owners), None)


def _named(module: ModuleError) -> str:
    return module.path or "the component itself"
