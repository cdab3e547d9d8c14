"""The command that generates a picture: generate."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli import options, shared
from md_export.cli.paths import CHECKPOINT, EXISTING, EXPORT, FILE
from md_export.spec.names import DEFAULT_STRENGTH, Method
from md_export.spec.variant import Size, Variant


@click.command()
@click.argument("prompt")
@click.option("--artifacts", type=EXPORT, help="Run the artifacts of this export.")
@click.option(
    "--checkpoint",
    type=CHECKPOINT,
    help="Run this checkpoint in torch instead.  [default: the nano checkpoint that ships]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed the starting noise.")
@click.option("--init-image", type=EXISTING, help="Start from this picture; with --mask, keep the unmasked part.")
@click.option(
    "--strength", type=float, help=f"Change --init-image by this share, in (0, 1].  [default: {DEFAULT_STRENGTH}]"
)
@click.option("--mask", type=EXISTING, help="Repaint the white part of this picture; same size as --init-image.")
@click.option(
    "--condition",
    type=EXISTING,
    help="Condition the adapter or ControlNet on this picture, such as edges; output size.",
)
@options.variant_options
@click.option(
    "--style",
    metavar="NAME[:SCALE]",
    help="Use this style of --artifacts, or the one in a folder that md-export style wrote.",
)
@click.option("-o", "--output", type=FILE, required=True, help="Write the picture to this .png file.")
def generate(
    prompt: str,
    artifacts: Path | None,
    checkpoint: Path | None,
    seed: int,
    init_image: Path | None,
    strength: float | None,
    mask: Path | None,
    negative: str | None,
    condition: Path | None,
    size: Size | None,
    timestep: int | None,
    clip_skip: int,
    steps: int | None,
    sampler: Method | None,
    guidance: float | None,
    loras: tuple[str, ...],
    style: str | None,
    output: Path,
) -> None:
    """Generate a picture from PROMPT, by artifacts or by torch.

    Example: md-export generate "a cat" --artifacts ios -o cat.png

    The default is one UNet step; a checkpoint also samples in many --steps. --init-image starts from a picture; with
    --mask, only its white part is repainted, best with a UNet that was trained for inpainting. Both need the VAE
    encoder.
    """
    from md_export.engine.picture import GivenFiles, Source, picture
    from md_export.models.sampling.pictures import write_png
    from md_export.spec.sampler import sampler_of

    files = GivenFiles(init_image, strength, mask, condition)
    with shared.options_checked():
        plan = sampler_of(steps, guidance, sampler)
    source = Source(
        artifacts,
        checkpoint if artifacts else shared.checkpoint_or_nano(checkpoint),
        Variant(size, timestep, clip_skip, guidance),
        plan,
        loras,
        style,
    )
    made = picture(prompt, seed, source, files, negative, shared.note)
    write_png(output, made)
    click.echo(f"{output}: {made.shape[1]}×{made.shape[0]}")
