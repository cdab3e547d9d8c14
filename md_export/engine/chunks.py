"""Number of chunks of a recipe, and the size of each."""

from __future__ import annotations

from typing import Final

from md_export.engine.costs import space_of
from md_export.engine.dependencies import Source
from md_export.errors import UsageError
from md_export.models.chunks import borders, chunk_bytes
from md_export.models.families import family_of
from md_export.spec.names import MOST_CHUNKS, chunk_number
from md_export.spec.recipe import Recipe

# Limit of one file in bytes: phones stall on a graph of 1.8 GB and run graphs of 0.5 to 1 GB, and coremltools' guide
# recommends models of up to 1 GB on an iPhone.
LARGEST_FILE: Final = 1_000_000_000


def cut_recipe(recipe: Recipe, source: Source) -> Recipe:
    """Return the recipe with schemes and tolerances of its chunks; auto becomes a number.

    Raises:
        UsageError: the denoiser cannot be cut into this number of chunks, or ``auto`` finds no number for which each
            file is small enough.
    """
    if recipe.chunks is None:
        return recipe
    if isinstance(recipe.chunks, int):
        borders(source.denoiser, recipe.chunks)
        return recipe.cut(recipe.chunks)
    name = family_of(source.checkpoint.config).denoised.node
    most = min(MOST_CHUNKS, sum(part.bytes > 0 for part in source.denoiser))
    for count in range(1, most + 1):
        sizes = chunk_bytes(source.denoiser, borders(source.denoiser, count) if count > 1 else ())
        if max(space_of(recipe.schemes[name], size) for size in sizes) < LARGEST_FILE:
            return recipe.cut(count if count > 1 else None)
    raise UsageError(
        f"chunks auto: {most} chunks do not keep each file of the {name} below {LARGEST_FILE / 1e9:g} GB; give "
        "--chunks with a number, or smaller weights"
    )


def bytes_of(recipe: Recipe, source: Source) -> dict[str, int]:
    """Return the size of each of a recipe's artifacts in bytes of float32 weights."""
    found = {name: source.weights[name] for name in recipe.parts if not chunk_number(name)}
    if isinstance(recipe.chunks, int):
        names = [name for name in recipe.parts if chunk_number(name)]
        found |= dict(zip(names, chunk_bytes(source.denoiser, borders(source.denoiser, recipe.chunks)), strict=True))
    return found
