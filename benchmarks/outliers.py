"""What outliers cost each recipe of integer weights on the nano checkpoint, with and without the rewrite ``equalize``.

    python benchmarks/outliers.py [--factor F ...] [--prompts N] [RECIPE ...]

Outliers are planted so that the model computes the same: two channels behind each norm, each value projection and each
GLU's value half are multiplied by the factor, and the weights that read them are divided by it. The position embedding
of the text encoder's first token gets an offset, too, equal in all channels: each norm that reads the residual stream
subtracts it. Trained models have such first tokens (Sun et al., arXiv 2402.17762), but in single channels. No exact
change of a model can plant those, because the variance that norms divide by would change.

A cell is the SNR in dB of text encoder / UNet, the worst golden case. The nano decoder has no such channels: its
norms are before activations.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import click
import torch
from safetensors.torch import save_file
from torch import nn

from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.request import Resources
from md_export.errors import ParityError
from md_export.models.text_encoder import TextEncoder
from md_export.rewrites.adopt import adopt
from md_export.rewrites.equalize import links
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

RECIPES: Final = (
    "coreml-int8",
    "coreml-sparse-int8",
    "coreml-int4",
    "coreml-w8a8",
    "tflite-int8",
    "tflite-int8-weights",
    "tflite-int8-static",
    "tflite-int4",
    "onnx-int8",
    "onnx-int8-weights",
    "onnx-int4",
    "onnx-w8a8",
    "onnx-w8a16",
    "coreai-int8",
    "coreai-w8a8",
)
FACTORS: Final = (8.0, 64.0, 256.0)
_FILES: Final = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
}
_SEED: Final = 0


@torch.no_grad()
def plant(module: nn.Module, factor: float, channels: int = 2) -> int:
    """Give ``module`` outliers, in place; it computes the same. Returns the number of places.

    ``channels`` of each place, chosen at random, are ``factor`` times as large; a factor that is a power of two leaves
    each output as it is, to the bit.
    """
    adopt(module)
    generator = torch.Generator().manual_seed(_SEED)
    found = list(links(module))
    for link in found:
        scale = torch.ones(link.channels)
        scale[torch.randperm(link.channels, generator=generator)[:channels]] = 1 / factor
        link.divide(scale)
    return len(found)


@torch.no_grad()
def move_first_token(encoder: TextEncoder, factor: float) -> None:
    """Add ``factor`` times the root mean square of the embeddings to all channels of the first position, in place.

    Norms over channels subtract it, to float32 rounding: at a factor of 64, 6 bits are lost to it.
    """
    table: Any = encoder.embeddings
    positions = table.position_embedding.weight.detach().clone()
    positions[0] += factor * table.token_embedding.weight.square().mean().sqrt()
    table.position_embedding.weight = nn.Parameter(positions, requires_grad=False)


def planted_nano(factor: float, folder: Path) -> Path:
    """Write the nano checkpoint with outliers, in float32; a factor of 1 copies it."""
    source = nano_checkpoint()
    for name in ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copyfile
        copy(source / name, folder / name)
    checkpoint = open_checkpoint(source)
    for component, file in _FILES.items():
        module = checkpoint.module(component)
        if factor > 1:
            plant(module, factor)
        if factor > 1 and isinstance(module, TextEncoder):
            move_first_token(module, factor)
        stored = {name: value.contiguous() for name, value in module.state_dict().items()}
        save_file(stored, folder / file, metadata={"format": "pt"})
    return folder


def recipe_of(name: str, prompts: int | None, equalized: bool) -> Recipe:
    """The shipped recipe with or without ``equalize``, without thresholds."""
    base = load_recipe(builtin_recipe(*name.split("-", 1)))
    others = tuple(rewrite for rewrite in base.rewrites if rewrite != "equalize")
    return dataclasses.replace(
        base,
        rewrites=("equalize", *others) if equalized else others,
        golden=dataclasses.replace(base.golden, prompts=base.golden.prompts[:prompts]),
        tolerances=dict.fromkeys(base.components, Tolerance(snr_db=-100.0)),
        picture_psnr_db=0.0,
    ).narrowed(tuple(_FILES))


def snr_db(recipe: Recipe, checkpoint: Path, out: Path, cache: Path) -> list[float]:
    """SNR of text encoder and UNet."""
    try:
        export(recipe, checkpoint, out, progress=lambda _: None, resources=Resources(cache))
    except ParityError as error:
        click.echo(str(error), err=True)
        out = out.with_name(f"{out.name}.rejected")
    manifest = read_manifest(out)
    shutil.rmtree(out)
    parities = [manifest.entry_for(component).parity for component in _FILES]
    return [parity.snr_db for parity in parities if parity is not None]


def cell(figures: list[float]) -> str:
    return " / ".join(f"{figure:.1f}" for figure in figures)


@click.command()
@click.option("--factor", "factors", type=float, multiple=True, default=FACTORS, show_default=True)
@click.option("--prompts", type=int, help="Number of golden prompts (default: the recipe's).")
@click.argument("recipes", nargs=-1, type=click.Choice(RECIPES))
def main(factors: tuple[float, ...], prompts: int | None, recipes: tuple[str, ...]) -> None:
    """Print a row for each RECIPE (default: all)."""
    columns = ["none", *(f"{factor:g}, {end}" for end in ("without", "equalized") for factor in factors)]
    click.echo(f"| recipe | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoints = {factor: folder / f"{factor:g}" for factor in (1.0, *factors)}
        for factor, place in checkpoints.items():
            place.mkdir()
            planted_nano(factor, place)
        runs = [(1.0, False), *((factor, equalized) for equalized in (False, True) for factor in factors)]
        for name in recipes or RECIPES:
            cells = []
            for factor, equalized in runs:
                out = folder / f"{name}-{factor:g}-{equalized}"
                cells.append(
                    cell(snr_db(recipe_of(name, prompts, equalized), checkpoints[factor], out, folder / "cache"))
                )
            click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
