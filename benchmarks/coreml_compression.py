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

from md_export.artifact import Manifest, read_manifest
from md_export.checkpoint import open_checkpoint
from md_export.data import builtin_recipe, nano_checkpoint
from md_export.errors import ParityError
from md_export.generation import pictures_of_artifacts
from md_export.pipeline import export
from md_export.recipe import QuantScheme, Recipe, load_recipe
from parity import Detector, sample

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


def exported(recipe: Recipe, out: Path) -> tuple[Path, Manifest, bool]:
    """The export, or the rejected one, and whether it passed."""
    try:
        manifest, _ = export(recipe, nano_checkpoint(), out, progress=lambda _: None)
    except ParityError:
        rejected = out.with_name(f"{out.name}.rejected")
        return rejected, read_manifest(rejected), False
    return out, manifest, True


def row(recipe: Recipe, folder: Path, detector: Detector, unet_weights: int) -> str:
    out, manifest, passed = exported(recipe, folder / recipe.name.replace(" ", "_").replace(",", ""))
    unet = manifest.entry_for("unet")
    figures = [f"{entry.parity.snr_db:.1f}" if entry.parity else "-" for entry in manifest.artifacts]
    picture = f"{manifest.picture_psnr_db:.1f}" if manifest.picture_psnr_db is not None else "-"
    cells = (
        recipe.name.removeprefix("coreml-"),
        (recipe.deployment_target or "iOS17").removeprefix("iOS"),
        f"{sum(entry.bytes for entry in manifest.artifacts):,}",
        f"{8 * sum(unet.stored.values()) / unet_weights:.2f}",
        *figures,
        picture,
        detector.score(pictures_of_artifacts(out, detector.requests)),
        "" if passed else "rejected",
    )
    return f"| {' | '.join(cells)} |"


def main(count: int, wanted: list[str]) -> None:
    """Print the table, or some of its rows."""
    detector = Detector(sample(count))
    unet = open_checkpoint(nano_checkpoint()).module("unet")
    weights = sum(parameter.numel() for parameter in unet.parameters())
    print(HEADER)
    print("|---" + "|---:" * (HEADER.count("|") - 3) + "|---|")
    with tempfile.TemporaryDirectory() as folder:
        chosen = [item for item in recipes() if not wanted or item.name.removeprefix("coreml-") in wanted]
        for recipe in chosen:
            print(row(recipe, Path(folder), detector, weights), flush=True)


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["200"])[0]), sys.argv[2:])
