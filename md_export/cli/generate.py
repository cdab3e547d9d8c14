"""The command that makes a picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from md_export.cli import shared
from md_export.cli.shared import PATH
from md_export.errors import UsageError
from md_export.spec.names import Method
from md_export.spec.variant import Size, Variant

# Of a picture to start from, where nobody says.
_STRENGTH = 0.8


@click.command()
@click.argument("prompt")
@click.option("--artifacts", type=PATH, help="Run the artifacts of this export.")
@click.option("--checkpoint", type=PATH, help="Run this checkpoint in torch.  [default: the nano one]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--init-image", type=PATH, help="Start from this picture; with --mask, keep a part of it.")
@click.option("--strength", type=float, help=f"Share of --init-image to change, in (0, 1].  [default: {_STRENGTH}]")
@click.option("--mask", type=PATH, help="Paint anew what is white in this picture of the same size.")
@shared.negative_option
@click.option("--condition", type=PATH, help="Condition image for the adapter or ControlNet, such as edges.")
@shared.size_option
@shared.timestep_option
@shared.clip_skip_option
@shared.steps_option
@shared.sampler_option
@shared.guidance_option
@shared.lora_option
@click.option("-o", "--output", type=PATH, required=True, help="Write the picture to this .png file.")
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
    from md_export.checkpoint.derived import adapted
    from md_export.engine.generate import (
        frame_of_checkpoint,
        open_to_run,
        pictures_of_artifacts,
        pictures_of_checkpoint,
    )
    from md_export.models.sampling.pictures import write_png
    from md_export.spec.sampler import sampler_of

    variant = Variant(size, timestep, clip_skip, guidance)
    _check_source(artifacts, checkpoint, variant, loras)
    plan = sampler_of(steps, guidance, sampler)
    if artifacts and plan:
        raise UsageError(
            "artifacts are for the steps that they were exported for; leave out --steps, --sampler and --guidance"
        )
    files = _Files(init_image, strength, mask, condition)
    if artifacts:
        given = files.read(lambda: open_to_run(artifacts).frame)
        (picture,) = pictures_of_artifacts(artifacts, [(prompt, seed)], *given, negative, shared.note)
    else:
        with adapted(shared.checkpoint_or_nano(checkpoint), loras) as folder:
            given = files.read(lambda: frame_of_checkpoint(folder, variant))
            (picture,) = pictures_of_checkpoint(folder, [(prompt, seed)], variant, plan, *given, negative, shared.note)
    write_png(output, picture)
    click.echo(f"{output}: {picture.shape[1]}×{picture.shape[0]}")


def _check_source(artifacts: Path | None, checkpoint: Path | None, variant: Variant, loras: tuple[str, ...]) -> None:
    if artifacts and checkpoint:
        raise UsageError("name --artifacts or --checkpoint, not both")
    if artifacts and variant.changes:
        raise UsageError(
            "artifacts are of one size, timestep and text encoder; leave out --size, --timestep and --clip-skip, or "
            "export with them"
        )
    if artifacts and loras:
        raise UsageError("artifacts hold the LoRAs that they were exported with; leave out --lora")


@dataclass(frozen=True)
class _Files:
    """Pictures that the user gives, not yet read."""

    init_image: Path | None
    strength: float | None
    mask: Path | None
    condition: Path | None

    def __post_init__(self) -> None:
        if self.mask is not None and self.init_image is None:
            raise UsageError("--mask says what of a picture is painted anew; give the picture with --init-image")
        if self.strength is not None and (self.init_image is None or self.mask is not None):
            raise UsageError("--strength is for a picture to start from: --init-image without --mask")

    def read(self, frame: Callable[[], Any]) -> tuple[list[Any] | None, list[Any] | None, list[Any] | None]:
        """Return pictures to keep, to condition on and to start from; ``frame`` gives the model's sizes."""
        if self.init_image is None and self.condition is None:
            return None, None, None
        from md_export.models.sampling.pictures import read_condition, read_given, read_start

        wanted, given, start, steering = frame(), None, None, None
        if self.condition is not None:
            steering = [read_condition(self.condition, wanted.require_condition())]
        if self.init_image is not None and self.mask is not None:
            given = [read_given(self.init_image, self.mask, wanted.shape)]
        elif self.init_image is not None:
            start = [read_start(self.init_image, _STRENGTH if self.strength is None else self.strength, wanted.shape)]
        return given, steering, start
