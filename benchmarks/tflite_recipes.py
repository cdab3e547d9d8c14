"""Every TFLite recipe × (nano, small Stable Diffusion, small Stable Diffusion XL): resident, and right?

    python benchmarks/tflite_recipes.py [--model M ...] [RECIPE ...]

A row for each component: operations and those that LiteRT's GPU engine leaves to the CPU, the worst SNR in dB on
XNNPACK and on the engine (software Vulkan), and whether both meet the recipe's thresholds. An export fails by itself
if a known fault of LiteRT, from the recipe's ``min_litert`` on, concerns it. The small models have random weights, for
which exports lower the thresholds; two golden prompts each.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from md_export.checkpoint.architectures import write_checkpoint  # noqa: E402
from md_export.engine.export import export  # noqa: E402
from md_export.engine.request import Resources  # noqa: E402
from md_export.errors import MdExportError  # noqa: E402
from md_export.parity.gpu import verify_on_gpu  # noqa: E402
from md_export.spec.manifest import read_manifest  # noqa: E402
from md_export.spec.recipe import Recipe  # noqa: E402
from md_export.spec.recipe_file import load_recipe  # noqa: E402
from md_export.spec.shipped_files import nano_checkpoint  # noqa: E402
from small_models import STABLE, XL_SHORT  # noqa: E402

RECIPES: Final = tuple(path.stem for path in sorted((ROOT / "recipes").glob("tflite-*.toml")))
MODELS: Final = ("nano", "sd", "sdxl")
LIMIT_S: Final = 600.0


def recipe_of(name: str) -> Recipe:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    return dataclasses.replace(recipe, golden=dataclasses.replace(recipe.golden, prompts=recipe.golden.prompts[:2]))


def rows(model: str, name: str, checkpoint: Path, folder: Path) -> list[str]:
    """One for each component; the error's line where the export fails."""
    out = folder / f"{model}-{name}"
    try:
        export(recipe_of(name), checkpoint, out, progress=lambda _: None, resources=Resources(folder / "cache"))
        found = verify_on_gpu(out, None, LIMIT_S)
    except MdExportError as error:
        return [f"| {model} | {name} | {error} |"]
    manifest, made = read_manifest(out), []
    for part in found.components:
        cpu, gpu = manifest.entry_for(part.component).parity, part.parity
        verdict = "yes" if not part.faults and part.engine.resident else "; ".join(map(str, part.faults))
        snr = " | ".join(f"{parity.snr_db:.1f}" if parity else "none" for parity in (cpu, gpu))
        made.append(
            f"| {model} | {name} | {part.component} | {part.engine.ops} | {part.engine.on_cpu} | {snr} | {verdict} |"
        )
    return made


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS, show_default=True)
@click.argument("recipes", nargs=-1, type=click.Choice(RECIPES))
def main(models: tuple[str, ...], recipes: tuple[str, ...]) -> None:
    """Print the table of each RECIPE (default: all)."""
    click.echo("| model | recipe | component | ops | on the CPU | XNNPACK dB | GPU engine dB | resident and right |")
    click.echo(f"|---|---|---|{'---:|' * 4}---|")
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        checkpoints = {"nano": nano_checkpoint(), "sd": folder / "sd", "sdxl": folder / "sdxl"}
        write_checkpoint(checkpoints["sd"], STABLE, seed=7)
        write_checkpoint(checkpoints["sdxl"], XL_SHORT, seed=7)
        for model in models:
            for name in recipes or RECIPES:
                for row in rows(model, name, checkpoints[model], folder):
                    click.echo(row)


if __name__ == "__main__":
    main()
