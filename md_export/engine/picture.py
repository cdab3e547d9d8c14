"""One picture for ``generate``: checks that what was asked for fits together, reads the given files, runs the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint.derived import adapted
from md_export.engine.generate import frame_of_checkpoint, pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.runnable_export import Frame, open_to_run
from md_export.errors import UsageError
from md_export.models.sampling.pictures import Given, Start, read_condition, read_given, read_start
from md_export.spec.names import DEFAULT_STRENGTH
from md_export.spec.sampler import SamplerPlan
from md_export.spec.tensors import Array, Float32
from md_export.spec.variant import TRAINED, Variant


@dataclass(frozen=True)
class GivenFiles:
    """Pictures that the user gives, not yet read.

    Attributes:
        init_image: picture to start from; with ``mask``, picture of which a part is kept.
        strength: share of ``init_image`` to change, in (0, 1].
        mask: picture of the same size; white is painted anew.
        condition: condition picture for an adapter or a ControlNet.
    """

    init_image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    condition: Path | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for files that make no sense together."""
        if self.mask is not None and self.init_image is None:
            raise UsageError("--mask needs the picture to repaint; give it with --init-image")
        if self.strength is not None and (self.init_image is None or self.mask is not None):
            raise UsageError("--strength needs --init-image without --mask; leave out --strength or --mask")

    @property
    def _strength(self) -> float:
        return DEFAULT_STRENGTH if self.strength is None else self.strength

    def read(self, frame: Callable[[], Frame]) -> tuple[list[Given] | None, list[Array] | None, list[Start] | None]:
        """Return pictures to keep, to condition on and to start from; ``frame`` gives the model's sizes."""
        if self.init_image is None and self.condition is None:
            return None, None, None
        wanted, given, condition, start = frame(), None, None, None
        if self.condition is not None:
            condition = [read_condition(self.condition, wanted.require_condition())]
        if self.init_image is not None and self.mask is not None:
            given = [read_given(self.init_image, self.mask, wanted.shape)]
        elif self.init_image is not None:
            start = [read_start(self.init_image, self._strength, wanted.shape)]
        return given, condition, start


@dataclass(frozen=True)
class Source:
    """The model that makes a picture: the artifacts of an export, or a checkpoint in torch.

    Attributes:
        artifacts: folder of the export; None: torch runs the checkpoint.
        variant, sampler, loras: changes of the checkpoint; artifacts have them built in.
        style: style of the artifacts, as for :func:`md_export.engine.style.chosen_style`.
    """

    artifacts: Path | None = None
    checkpoint: Path | None = None
    variant: Variant = TRAINED
    sampler: SamplerPlan | None = None
    loras: tuple[str, ...] = ()
    style: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError unless exactly one model is named, or for changes of artifacts."""
        if self.artifacts and self.checkpoint:
            raise UsageError("--artifacts and --checkpoint exclude each other; give one of them")
        if not (self.artifacts or self.checkpoint):
            raise UsageError("name what makes the picture: artifacts or a checkpoint")
        if self.artifacts and self.variant.changes:
            raise UsageError(
                "artifacts have a fixed size, timestep and text encoder; leave out --size, --timestep and --clip-skip, "
                "or export with them"
            )
        if self.artifacts and self.loras:
            raise UsageError("artifacts contain the LoRAs that they were exported with; leave out --lora")
        if self.style and not self.artifacts:
            raise UsageError("--style chooses a style of --artifacts; for a checkpoint, give the LoRA with --lora")
        if self.artifacts and self.sampler:
            raise UsageError(
                "artifacts run the steps that they were exported with; leave out --steps, --sampler and --guidance"
            )


def picture(
    prompt: str,
    seed: int,
    source: Source,
    files: GivenFiles = GivenFiles(),
    negative: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Float32:
    """Return a ``[H, W, 3]`` picture in [0, 1].

    Args:
        negative: prompt that guidance leads away from; None for the empty prompt.
        tell: is given a line for a prompt that is too long.

    Raises:
        MdExportError: as :func:`md_export.engine.generate.pictures_of_artifacts` or
            :func:`md_export.engine.generate.pictures_of_checkpoint`; a given picture cannot be read.
    """
    asked = [(prompt, seed)]
    if source.artifacts is not None:
        export = source.artifacts
        given = files.read(lambda: open_to_run(export).frame)
        return pictures_of_artifacts(export, asked, *given, negative, tell, source.style)[0]
    assert source.checkpoint is not None  # noqa: S101 (a source names one of the two)
    with adapted(source.checkpoint, source.loras) as folder:
        given = files.read(lambda: frame_of_checkpoint(folder, source.variant))
        return pictures_of_checkpoint(folder, asked, source.variant, source.sampler, *given, negative, tell)[0]
