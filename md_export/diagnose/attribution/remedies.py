"""Suggest recipe changes for a component with a badly computed module."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final

from md_export.diagnose.attribution.locate import SOMETHING_ELSE_DB
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.manifest import Manifest
from md_export.spec.scheme import QuantScheme

if TYPE_CHECKING:
    from md_export.diagnose.attribution.attribute import Attribution, ModuleError

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
    lines = ["its bytes are not those of the manifest: it was altered, export again"] if altered else []
    scheme, first = manifest.recipe.schemes[entry.component], found.first
    if first is not None and first.path in owners and not first.local_snr_db >= SOMETHING_ELSE_DB:
        lines.append(
            f"{_named(first)} computes something else altogether, which no precision explains: compare the stored "
            f"weights with md-export audit, and export again"
        )
        return tuple(lines)
    if first is not None:
        lines += _of_precision(entry, scheme.for_module(first.path), found.modules, first, owners)
        return tuple(lines)
    output = next((item for item in found.modules if not item.path), None)
    if output is not None and not output.cumulative_snr_db >= manifest.recipe.tolerances[entry.component].snr_db:
        lines.append(
            f"no single module is to blame: the errors add up. {_heaviest(entry, scheme, found.worst, owners)}"
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
        yield f"{_named(first)} is in float32, so it is the form: {without}report the converter"
        return
    if scheme.weights == "float16":
        yield f'{_named(first)} does not stand float16: weights = "float32" and activations = "float32" under ' + (
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
        yield f"{floats} instead of {scheme.activations} under {table}, where the target has that"


def _heaviest(
    entry: ArtifactEntry, scheme: QuantScheme, worst: tuple[ModuleError, ...], owners: Collection[str]
) -> str:
    """Return advice to keep the weights that cost the output most in float, or to use a wider type."""
    if all(storage.keeps_weights for storage in scheme.storages):
        return "Use a wider type"
    tried = [item for item in worst if item.path in owners and item.alone_snr_db is not None]
    heavy = [item.path for item in sorted(tried, key=lambda item: item.alone_snr_db or 0.0)[:3]]
    return f"Those that cost most: {_keep(entry, scheme, heavy)}" if heavy else "Use a wider type"


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
