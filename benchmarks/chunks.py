"""A full-size UNet of Stable Diffusion 1.5 as one file and in chunks: bytes, parity, and memory of running it.

    python benchmarks/chunks.py WORK                 both targets, float16, whole and in 2 chunks
    python benchmarks/chunks.py WORK coreml 3        one target, in 3 chunks

WORK keeps the checkpoint with random weights, the exports and the cache (20 GB). Conversions need up to 13 GB.
Each form is run in a process of its own, a chunk unloaded before the next is loaded, as an app does that saves memory.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from pathlib import Path
from typing import Final

from md_export.checkpoint.architectures import init_checkpoint
from md_export.engine.artifact import peak_resident_bytes
from md_export.engine.export import export
from md_export.engine.request import Resources
from md_export.parity.golden.folder import read_golden
from md_export.parity.golden.surface import inputs_of, unpacked
from md_export.parity.judge import verify
from md_export.spec.artifact import GOLDEN_FOLDER, artifact_path
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array
from md_export.targets import TARGETS

TARGETS_HERE: Final = ("coreml", "tflite")
MB: Final = 1e6


def recipe_of(target: str, chunks: int | None) -> Recipe:
    """The float16 recipe that ships, for the UNet, on one prompt."""
    recipe = load_recipe(builtin_recipe(target, "fp16")).narrowed(("unet",))
    golden = dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:1], seeds=recipe.golden.seeds[:1])
    return dataclasses.replace(recipe, golden=golden, chunks=chunks)


def run_in_turn(out: Path) -> int:
    """Run an export's artifacts one after the other on its golden case; return peak resident bytes of this process."""
    manifest, (case, *_) = read_manifest(out), read_golden(out / GOLDEN_FOLDER).cases
    crossing: dict[str, Array] = {}
    for entry in manifest.artifacts:
        given = inputs_of(manifest.recipe, entry, case)
        runner = TARGETS[manifest.target].open().load(artifact_path(out, entry))
        outputs = runner.run({**given, **{name: crossing[name] for name in given.keys() & crossing.keys()}})
        crossing |= unpacked(manifest.recipe, entry, outputs)
        del runner
    return peak_resident_bytes()


def row(out: Path) -> str:
    """Files, bytes, parity of the whole UNet, and memory."""
    manifest: Manifest = read_manifest(out)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak = pool.apply(run_in_turn, (out,))
    sizes = [entry.bytes for entry in manifest.artifacts]
    found = {item.component: item.parity for item in verify(out).components}
    snr = ", ".join(f"{parity.snr_db:.1f}" for parity in found.values() if parity)
    files = " + ".join(f"{size / MB:,.0f}" for size in sizes)
    making = max(entry.measured.peak_resident_bytes for entry in manifest.artifacts)
    return f"| {manifest.target} | {files} | {sum(sizes) / MB:,.1f} | {snr} | {peak / MB:,.0f} | {making / MB:,.0f} |"


def main(work: Path, targets: tuple[str, ...], chunks: int) -> None:
    """Export what is not there yet, and print the table."""
    checkpoint = work / "sd15"
    if not checkpoint.is_dir():
        init_checkpoint(checkpoint, "sd15", seed=0)
    print(
        "| target | MB of each file | MB | SNR dB of each file, of all | peak MB of running | peak MB of converting |"
    )
    print("|---|---|---:|---|---:|---:|", flush=True)
    for target in targets:
        for count in (chunks, None):
            out = work / f"{target}-{count or 1}"
            if not out.is_dir():
                resources = Resources(work / "cache", 1)
                export(
                    recipe_of(target, count),
                    checkpoint,
                    out,
                    None,
                    lambda line: print(line, file=sys.stderr),
                    resources,
                )
            print(row(out), flush=True)


if __name__ == "__main__":
    named = [name for name in sys.argv[2:] if name in TARGETS_HERE]
    numbers = [int(name) for name in sys.argv[2:] if name.isdecimal()]
    main(Path(sys.argv[1]), tuple(named) or TARGETS_HERE, next(iter(numbers), 2))
