"""Every scheme that a target has, on the nano checkpoint: bytes, parity, what the pixel detector says, how fast.

    python benchmarks/quantization.py [--captions N] [--keep FOLDER] [TARGET ...]

A row is a recipe that ships, or one with another scheme and the same modules in float. An export that its recipe's
thresholds reject is a row too: its figures are read from the ``.rejected`` folder. The detector is parity.py's.

Latency is that of the UNet's artifact with two threads: all files of a target in turn in each of some rounds, median of
the rounds' own ratios to the first row. What our runtime of Core ML packages takes tells nothing of a phone.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts
from md_export.errors import ParityError
from md_export.parity.golden.folder import read_golden
from md_export.parity.golden.surface import inputs_of
from md_export.spec.artifact import artifact_path
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.targets import TARGETS
from parity import Detector, sample

HEADER = (
    "| scheme | bytes | UNet bits a weight | text encoder dB | UNet dB | decoder dB | picture dB | detector "
    "| UNet time | |"
)
ROUNDS = 101
GPTQ: dict[str, Any] = {"rounding": "gptq", "bias_correction": True}


@dataclass(frozen=True)
class Row:
    """A recipe that ships, and what differs in the scheme of each component."""

    recipe: str
    title: str = ""
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.recipe}{', ' * bool(self.title)}{self.title}"


def other(recipe: str, title: str, **changes: Any) -> Row:
    return Row(recipe, title, tuple(changes.items()))


def palette(bits: int) -> dict[str, Any]:
    return {"weights": f"palette{bits}"}


ROWS: dict[str, tuple[Row, ...]] = {
    "coreml": (
        Row("fp16"),
        Row("int8"),
        other("int8", "compensated", **GPTQ),
        Row("int4"),
        other("int4", "scales by least squares", rounding="mse"),
        other("int4", "compensated", **GPTQ),
        Row("palette8"),
        Row("palette6"),
        other("palette6", "compensated", **GPTQ),
        Row("palette4"),
        other("palette4", "tables by least squares", rounding="mse"),
        other("palette4", "compensated", **GPTQ),
        other("palette4", "3 bits", **palette(3)),
        other("palette4", "3 bits, compensated", **palette(3), **GPTQ),
        other("palette4", "2 bits", **palette(2)),
        other("palette4", "2 bits, compensated", **palette(2), **GPTQ),
        Row("w8a8"),
        Row("sparse-int8"),
    ),
    "tflite": (
        Row("fp32"),
        Row("fp16"),
        Row("int8"),
        other("int8", "compensated", **GPTQ),
        other("int8", "a scale per tensor", granularity="tensor"),
        Row("int8-weights"),
        Row("int8-static"),
        Row("int4"),
        other("int4", "scales by least squares", rounding="mse"),
        other("int4", "compensated", **GPTQ),
    ),
    "onnx": (
        Row("fp32"),
        Row("fp16"),
        Row("int8"),
        other("int8", "compensated", **GPTQ),
        Row("int8-weights"),
        Row("int4"),
        other("int4", "scales by least squares", rounding="mse"),
        other("int4", "compensated", **GPTQ),
        other("int4", "a scale per channel", granularity="channel", block_size=None),
    ),
}


def recipe_of(target: str, row: Row) -> Recipe:
    base = load_recipe(builtin_recipe(target, row.recipe))
    changes: dict[str, Any] = dict(row.changes)
    schemes = {part: dataclasses.replace(scheme, **changes) for part, scheme in base.schemes.items()}
    return dataclasses.replace(base, name=row.name, schemes=schemes)


def exported(recipe: Recipe, out: Path) -> tuple[Path, Manifest, bool]:
    """The export, or the rejected one, and whether it passed; what is there already is taken."""
    rejected = out.with_name(f"{out.name}.rejected")
    if not out.exists() and not rejected.exists():
        try:
            export(recipe, nano_checkpoint(), out, progress=lambda _: None)
        except ParityError as error:
            click.echo(str(error), err=True)
    found = out if out.exists() else rejected
    return found, read_manifest(found), found == out


def bits_a_weight(manifest: Manifest) -> float:
    """Of the UNet, everything that it stores counted."""
    parameters = sum(value.numel() for value in open_checkpoint(nano_checkpoint()).module("unet").parameters())
    return 8 * sum(manifest.entry_for("unet").stored.values()) / parameters


def figures(manifest: Manifest) -> list[str]:
    """SNR of the components and PSNR of the picture, worst of the golden cases."""
    snr = [f"{entry.parity.snr_db:.1f}" if entry.parity else "-" for entry in manifest.artifacts]
    return [*snr, f"{manifest.picture_psnr_db:.1f}" if manifest.picture_psnr_db is not None else "-"]


def times(exports: Sequence[Path]) -> list[float]:
    """Of each export's UNet, relative to the first one's."""
    manifests = [read_manifest(out) for out in exports]
    entries = [manifest.entry_for("unet") for manifest in manifests]
    case = read_golden(nano_checkpoint() / "golden").cases[0]
    inputs = [inputs_of(one.recipe, entry, case) for one, entry in zip(manifests, entries, strict=True)]
    target = TARGETS[manifests[0].target].open()
    runners = [target.load(artifact_path(out, entry)) for out, entry in zip(exports, entries, strict=True)]
    rounds = []
    for number in range(ROUNDS + 1):
        taken = []
        for runner, given in zip(runners, inputs, strict=True):
            started = time.perf_counter()
            runner.run(given)
            taken.append(time.perf_counter() - started)
        # The first round lays out weights.
        rounds += [np.array(taken) / taken[0]] if number else []
    return [float(value) for value in np.median(rounds, axis=0)]


def rows(target: str, detector: Detector, scratch: Path) -> Iterator[str]:
    found = []
    for number, row in enumerate(ROWS[target]):
        out, manifest, passed = exported(recipe_of(target, row), scratch / f"{target}-{number}")
        score = detector.score(pictures_of_artifacts(out, detector.requests))
        size = f"{sum(entry.bytes for entry in manifest.artifacts):,}"
        cells = [row.name, size, f"{bits_a_weight(manifest):.2f}", *figures(manifest), score]
        found.append((out, cells, "" if passed else "rejected"))
        click.echo(f"{target} {row.name}: {' '.join(cells[1:])}", err=True)
    ratios = ["-"] * len(found) if target == "coreml" else [f"{one:.2f}" for one in times([out for out, _, _ in found])]
    for ratio, (_, cells, verdict) in zip(ratios, found, strict=True):
        yield f"| {' | '.join([*cells, ratio, verdict])} |"


@click.command()
@click.option("--captions", default=200, show_default=True, help="That the detector judges.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for exports; those that are there are taken.")
@click.argument("targets", nargs=-1, type=click.Choice(tuple(ROWS)))
def main(captions: int, keep: Path | None, targets: tuple[str, ...]) -> None:
    """Print a table for each target."""
    detector = Detector(sample(captions))
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for target in targets or tuple(ROWS):
            click.echo(f"\n{target}\n\n{HEADER}\n|---{'|---:' * (HEADER.count('|') - 3)}|---|")
            for row in rows(target, detector, folder):
                click.echo(row)


if __name__ == "__main__":
    main()
