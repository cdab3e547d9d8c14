"""Every compressed form of the nano checkpoint that a Core ML package has: bytes, parity, what the pixel detector says.

    python benchmarks/coreml_compression.py [captions [SCHEME ...]]

A row is a recipe that ships, or one with another scheme and the same modules in float. An export that its recipe's
thresholds reject is a row too: its figures are read from the ``.rejected`` folder. The detector is parity.py's.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from md_export.engine.generate import pictures_of_artifacts
from md_export.spec.recipe import QuantScheme, Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from parity import Detector, sample
from quantization import bits_a_weight, exported, figures

HEADER = (
    "| scheme | iOS | bytes | UNet bits a weight | text encoder dB | UNet dB | decoder dB | picture dB | detector | |"
)
SHIPPED = ("fp16", "int8", "int4", "palette8", "palette6", "palette4", "w8a8", "sparse-int8")
PER_TENSOR = "palette4, one table a weight"
# The recipe that it is a variant of, thresholds included.
OTHERS: dict[str, tuple[str, QuantScheme]] = {
    "int4 per channel": ("int4", QuantScheme("int4", "float16")),
    PER_TENSOR: ("palette4", QuantScheme("palette4", "float16", "tensor")),
    "palette3, groups of 16": ("palette4", QuantScheme("palette3", "float16", "group", group_size=16)),
    "palette2, groups of 16": ("palette4", QuantScheme("palette2", "float16", "group", group_size=16)),
    "palette6 and int8 activations": ("w8a8", QuantScheme("palette6", "int8_static", "tensor")),
    "half of int8 pruned": ("sparse-int8", QuantScheme("int8", "float16", sparsity=0.5)),
    "30 % of palette6 pruned": ("sparse-int8", QuantScheme("palette6", "float16", "tensor", sparsity=0.3)),
}


def recipes() -> Iterator[Recipe]:
    for name in SHIPPED:
        yield load_recipe(builtin_recipe("coreml", name))
    for title, (name, scheme) in OTHERS.items():
        base = load_recipe(builtin_recipe("coreml", name))
        schemes = {part: dataclasses.replace(scheme, keep_float=old.keep_float) for part, old in base.schemes.items()}
        yield dataclasses.replace(
            base, name=title, schemes=schemes, deployment_target="iOS17" if title == PER_TENSOR else "iOS18"
        )


def row(recipe: Recipe, folder: Path, detector: Detector) -> str:
    out, manifest, passed = exported(recipe, folder / recipe.name.replace(" ", "_").replace(",", ""))
    cells = (
        recipe.name.removeprefix("coreml-"),
        (recipe.deployment_target or "iOS17").removeprefix("iOS"),
        f"{sum(entry.bytes for entry in manifest.artifacts):,}",
        f"{bits_a_weight(manifest):.2f}",
        *figures(manifest),
        detector.score(pictures_of_artifacts(out, detector.requests)),
        "" if passed else "rejected",
    )
    return f"| {' | '.join(cells)} |"


def main(count: int, wanted: list[str]) -> None:
    """Print the table, or some of its rows."""
    detector = Detector(sample(count))
    print(HEADER)
    print("|---" + "|---:" * (HEADER.count("|") - 3) + "|---|")
    with tempfile.TemporaryDirectory() as folder:
        chosen = [item for item in recipes() if not wanted or item.name.removeprefix("coreml-") in wanted]
        for recipe in chosen:
            print(row(recipe, Path(folder), detector), flush=True)


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["200"])[0]), sys.argv[2:])
