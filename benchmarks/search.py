"""Bytes against picture PSNR: what `md-export search` finds for the nano checkpoint, beside uniform schemes.

    python benchmarks/search.py [--captions N] [--keep FOLDER] [TARGET ...]

Every row is artifacts, executed by the target's runtime: uniform weights of 8, 6 and 4 bits as the target has them,
rounded to nearest and with compensation, and what a search finds for some bits a weight. "over uniform" is how many dB
a row lies above the line through the uniform rows that are rounded to nearest, at the same bytes. The detector is
parity.py's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from md_export.engine.generate import pictures_of_artifacts
from md_export.engine.search.request import Budget, SearchRequest
from md_export.engine.search.run import ARTIFACTS, search
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.shipped_files import nano_checkpoint
from parity import Detector, sample
from quantization import GPTQ, Row, bits_a_weight, exported, figures, other, recipe_of

HEADER = (
    "| weights | bytes | UNet bits a weight | text encoder dB | UNet dB | decoder dB | picture dB | over uniform dB "
    "| detector |"
)
UNIFORM: dict[str, tuple[Row, ...]] = {
    "coreml": (Row("palette8"), Row("palette6"), Row("palette4")),
    "tflite": (Row("int8"), Row("int4")),
    "onnx": (Row("int8-weights"), Row("int4")),
}
BITS: dict[str, tuple[float, ...]] = {
    "coreml": (3.0, 3.5, 4.0, 4.5, 5.0, 6.0),
    "tflite": (4.5, 5.0, 6.0, 7.0),
    "onnx": (4.5, 5.0, 6.0, 8.0),
}


def size_of(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.artifacts)


def uniform(target: str, folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Exports rounded to nearest, and compensated ones, by title."""
    nearest: dict[str, Path] = {}
    compensated: dict[str, Path] = {}
    for row in UNIFORM[target]:
        for made, one in ((nearest, row), (compensated, other(row.recipe, "compensated", **GPTQ))):
            out, _, _ = exported(recipe_of(target, one), folder / f"{target}-{one.recipe}-{len(one.title)}")
            made[f"all {one.name}"] = out
    return nearest, compensated


def found(target: str, bits: float, folder: Path) -> Path:
    out = folder / f"{target}-{bits:g}-bits"
    request = SearchRequest(nano_checkpoint(), target, Budget(bits=bits), out, journal=folder / f"{target}.journal")
    if not out.exists():
        search(request, lambda done, total, text: None if done % 50 else click.echo(f"{done}/{total} {text}", err=True))
    return out / ARTIFACTS


def above(manifest: Manifest, line: Sequence[Manifest]) -> str:
    """Over the line through uniform exports; "-" left of the smallest of them."""
    points = sorted((size_of(one), one.picture_psnr_db or 0.0) for one in line)
    sizes, decibels = zip(*points, strict=True)
    size = size_of(manifest)
    if size < sizes[0] or manifest.picture_psnr_db is None:
        return "-"
    return f"{manifest.picture_psnr_db - float(np.interp(size, sizes, decibels)):+.1f}"


def table(target: str, detector: Detector, folder: Path) -> None:
    nearest, compensated = uniform(target, folder)
    line = [read_manifest(out) for out in nearest.values()]
    exports = {**nearest, **compensated}
    for bits in BITS[target]:
        exports[f"search, {bits:g} bits"] = found(target, bits, folder)
    for title, out in sorted(exports.items(), key=lambda item: size_of(read_manifest(item[1]))):
        manifest = read_manifest(out)
        score = detector.score(pictures_of_artifacts(out, detector.requests))
        cells = (
            title,
            f"{size_of(manifest):,}",
            f"{bits_a_weight(manifest):.2f}",
            *figures(manifest),
            above(manifest, line),
            score,
        )
        click.echo(f"| {' | '.join(cells)} |")


@click.command()
@click.option("--captions", default=200, show_default=True, help="That the detector judges.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Folder for exports and measurements; goes on where it was."
)
@click.argument("targets", nargs=-1, type=click.Choice(tuple(UNIFORM)))
def main(captions: int, keep: Path | None, targets: tuple[str, ...]) -> None:
    """Print a table for each target."""
    detector = Detector(sample(captions))
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for target in targets or tuple(UNIFORM):
            click.echo(f"\n{target}\n\n{HEADER}\n|---{'|---:' * (HEADER.count('|') - 2)}|")
            table(target, detector, folder)


if __name__ == "__main__":
    main()
