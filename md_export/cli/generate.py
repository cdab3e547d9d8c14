"""The command that makes a picture."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli import shared
from md_export.cli.paths import CHECKPOINT, EXISTING, EXPORT, FILE
from md_export.spec.names import DEFAULT_STRENGTH, Method
from md_export.spec.variant import Size, Variant


@click.command()
@click.argument("prompt")
@click.option("--artifacts", type=EXPORT, help="Run the artifacts of this export.")
@click.option("--checkpoint", type=CHECKPOINT, help="Run this checkpoint in torch.  [default: the nano one]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--init-image", type=EXISTING, help="Start from this picture; with --mask, keep a part of it.")
@click.option(
    "--strength", type=float, help=f"Share of --init-image to change, in (0, 1].  [default: {DEFAULT_STRENGTH}]"
)
@click.option("--mask", type=EXISTING, help="Paint anew what is white in this picture of the same size.")
@shared.negative_option
@click.option("--condition", type=EXISTING, help="Condition image for the adapter or ControlNet, such as edges.")
@shared.size_option
@shared.timestep_option
@shared.clip_skip_option
@shared.steps_option
@shared.sampler_option
@shared.guidance_option
@shared.lora_option
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
    output: Path,
) -> None:
    """Generate a picture from PROMPT in one UNet step, or in --steps, by an export's artifacts or by torch.

    --init-image starts from a picture. With --mask, a part of it is painted anew and the rest is kept, best with a UNet
    that was trained for it. Both need the VAE encoder.
    """
    from md_export.engine.picture import GivenFiles, Source, picture
    from md_export.models.sampling.pictures import write_png
    from md_export.spec.sampler import sampler_of

    files = GivenFiles(init_image, strength, mask, condition)
    source = Source(
        artifacts,
        checkpoint if artifacts else shared.checkpoint_or_nano(checkpoint),
        Variant(size, timestep, clip_skip, guidance),
        sampler_of(steps, guidance, sampler),
        loras,
    )
    made = picture(prompt, seed, source, files, negative, shared.note)
    write_png(output, made)
    click.echo(f"{output}: {made.shape[1]}×{made.shape[0]}")
