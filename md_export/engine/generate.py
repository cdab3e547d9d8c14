"""Make pictures from prompts with torch or with the artifacts of an export, one component after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from md_export.checkpoint import open_checkpoint
from md_export.engine.style import chosen_style
from md_export.errors import ArtifactError, UsageError
from md_export.models.families import family_named
from md_export.models.graph import Family
from md_export.models.sampling.advice import advice_on_steps
from md_export.models.sampling.generate import PictureRequest, Pipeline
from md_export.models.sampling.pictures import Given, Start
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.tokenizers import words_cut
from md_export.models.values import CONDITION, INPUT_IDS, LAST, MADE, SAMPLE, TIMESTEP
from md_export.models.walk import Steps, Tensors
from md_export.parity.golden.prepare import golden_source
from md_export.parity.golden.surface import packed, unpacked
from md_export.spec.artifact import ArtifactEntry, artifact_path, shape_of_input
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.names import whole_of
from md_export.spec.sampler import SamplerPlan
from md_export.spec.tensors import Array, Arrays, Float32
from md_export.spec.variant import TRAINED, Variant
from md_export.targets.execution import execute, parts_of, take_steps


@dataclass(frozen=True)
class Frame:
    """Dimensions of a model's pictures.

    Attributes:
        where: folder of the export or the checkpoint.
        shape: height and width of the pictures in pixels.
        condition: shape ``[1, C, H, W]`` of the condition picture; None if the model has no input for it.
    """

    where: Path
    shape: tuple[int, ...]
    condition: tuple[int, ...] | None

    def require_condition(self) -> tuple[int, ...]:
        """Return the shape ``[1, C, H, W]`` of the condition picture; raise UsageError if the model has none."""
        if self.condition is None:
            raise UsageError(
                f"{self.where}: this model has no input for a condition picture; add an adapter to its checkpoint with "
                "md-export adapt CHECKPOINT --adapter FOLDER, or --controlnet FOLDER, and use or export the result"
            )
        return self.condition


@dataclass(frozen=True)
class Export:
    """An export folder with its manifest, and its artifacts by component."""

    out: Path
    manifest: Manifest
    entries: dict[str, ArtifactEntry]

    @property
    def family(self) -> Family:
        """Family of the checkpoint."""
        return family_named(self.manifest.family)

    @property
    def inpaints(self) -> bool:
        """Whether the UNet's input has a mask and a picture's latents in addition to the noise."""
        return self._channels == 2 * self.latent_shape[1] + 1

    @property
    def edits(self) -> bool:
        """Whether the UNet's input has a picture's latents in addition to the noise, without a mask."""
        return self._channels == 2 * self.latent_shape[1]

    @property
    def denoiser(self) -> list[ArtifactEntry]:
        """Artifact of the denoiser, or those of its chunks."""
        return [x for x in self.entries.values() if whole_of(x.component) == whole_of(self.family.denoised.node)]

    @property
    def _channels(self) -> int:
        """Channels of the denoiser's latent input; a first chunk may have only the timestep as input."""
        return (shape_of_input(self.denoiser, SAMPLE.name) or (0, 0))[1]

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """Height and width of a picture in pixels."""
        return self.entries[self.family.image.node].outputs[0].shape[-2:]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape ``[1, C, h, w]`` of noise and latents."""
        return (1, *self.entries[self.family.image.node].inputs[0].shape[1:])

    @property
    def downscale(self) -> int:
        """Side of a latent pixel in picture pixels."""
        return self.picture_shape[-1] // self.latent_shape[-1]

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape ``[1, C, H, W]`` of the condition picture; None if the export has no input for it."""
        return shape_of_input(self.entries.values(), CONDITION.name)

    @property
    def neutral(self) -> dict[str, Array]:
        """Values without effect for inputs that a request without a condition does not provide."""
        rows = ((self.family[name], entry) for name, entry in self.entries.items())
        return {key: value for row, entry in rows for key, value in row.neutral(entry.inputs).items()}

    @property
    def frame(self) -> Frame:
        """Dimensions of the pictures that the export makes."""
        return Frame(self.out, self.picture_shape, self.condition_shape)

    def entry(self, component: str) -> ArtifactEntry:
        """Return a component's manifest entry; raise ArtifactError if the export does not have the component."""
        if component not in self.entries:
            raise ArtifactError(
                f"{self.out} has no {component}; export it too: md-export {self.manifest.target} --encoder"
            )
        return self.entries[component]

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Run a component and return all outputs for each set of inputs, under md-export's names.

        Raises:
            ArtifactError: the export does not have the component.
            RuntimeFault: the artifact does not run.
        """
        if not batches:
            return []
        entry, recipe = self.entry(component), self.manifest.recipe
        chosen = [packed(recipe, entry, batch) for batch in batches]
        made = execute(self.manifest.target, artifact_path(self.out, entry), chosen).outputs
        return [unpacked(recipe, entry, outputs) for outputs in made]

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """Run the sampling steps for all pictures in one process."""
        if not steps.sampler.takes_many:
            steps.take(self.run, pictures)
        else:
            take_steps(self.manifest.target, parts_of(self.out, self.manifest, steps, pictures), steps, pictures)


def open_to_run(out: Path) -> Export:
    """Open an export to make pictures; raise :class:`ArtifactError` if it lacks a required component."""
    manifest = read_manifest(out)
    entries = {entry.component: entry for entry in manifest.artifacts}
    needed = [row.name for row in family_named(manifest.family).required]
    if lacked := [name for name in needed if name not in entries]:
        raise ArtifactError(f"{out} has no {lacked[0]}; a picture needs all of {', '.join(needed)}: export them all")
    return Export(out, manifest, entries)


def frame_of_checkpoint(checkpoint_dir: Path, variant: Variant = TRAINED) -> Frame:
    """Return the dimensions of a checkpoint's pictures; raise UsageError if it does not support the variant."""
    config = open_checkpoint(checkpoint_dir).at(variant).config
    return Frame(checkpoint_dir, config.picture_shape, config.condition_shape)


Request = tuple[str, int]  # a prompt and a seed


def pictures_of_artifacts(
    out: Path,
    requests: Sequence[Request],
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
    negative: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
    style: str | None = None,
) -> list[Float32]:
    """Return one ``[H, W, 3]`` picture in [0, 1] per request; the target's runtime runs every component.

    Args:
        out: folder of the export.
        requests: prompts and seeds.
        given: one picture and mask per request for in-painting; the area outside the mask is kept.
        conditions: one condition per request for the adapter or the ControlNet; without conditions it has no effect.
        starts: one picture per request to start from instead of pure noise; all with the same strength. An editing
            UNet gets the picture in addition to the noise, with any strength.
        negative: negative prompt for guidance; None for the empty prompt.
        tell: called with a message about a prompt that is too long.
        style: style of the export, as for :func:`md_export.engine.style.chosen_style`.

    Raises:
        ArtifactError: the export lacks a component.
        RuntimeFault: an artifact does not run.
        UsageError: ``given`` in many steps for a UNet without inputs for in-painting, ``starts`` for a UNet with one
            fixed timestep, which can only start from pure noise, or ``negative`` without guidance.
    """
    export = open_to_run(out)
    if conditions is not None:
        export.frame.require_condition()
    if starts is not None and not export.edits:
        _check_start(export, starts)
    known = {} if style is None else chosen_style(out, export.manifest, style)
    pipeline = dataclasses.replace(
        _pipeline(export), recorded={**known, **(export.neutral if conditions is None else {})}
    )
    return _pictures(pipeline, requests, given, conditions, starts, negative, tell)


def _pipeline(export: Export) -> Pipeline:
    manifest, noise = export.manifest, export.manifest.schedule
    kind = manifest.one_step.prediction_type
    schedule = None if noise is None else ScheduleConfig(**dataclasses.asdict(noise), prediction_type=kind)
    family = export.family
    return Pipeline(
        family,
        family.of(export.entries),
        export,
        tokenizers={name: export.out / name for name in family.tokens},
        text_length=(shape_of_input(export.entries.values(), INPUT_IDS.name) or (0,))[-1],
        latent_shape=export.latent_shape,
        downscale=export.downscale,
        inpaints=export.inpaints,
        edits=export.edits,
        one_step=manifest.one_step,
        steps=manifest.steps,
        schedule=schedule,
        zeros_for_empty=manifest.zeros_for_empty,
    )


def _check_start(export: Export, starts: Sequence[Start]) -> None:
    """Check that the export can start from a picture.

    Raises:
        UsageError: the denoiser contains a single fixed timestep, and a strength below 1 needs another.
        ArtifactError: the export has no VAE encoder, or its manifest has no noise schedule.
    """
    is_fixed = shape_of_input(export.denoiser, TIMESTEP.name) is None
    folded = export.denoiser[-1].outputs[0].name == LAST.name or is_fixed
    if folded and export.manifest.steps is None and any(start.strength < 1 for start in starts):
        raise UsageError(
            f"{export.out}: its denoiser has the fixed timestep {export.manifest.one_step.timestep} "
            "(fold_timestep or fold_x0), and a --strength below 1 needs another; export without these rewrites"
        )
    export.entry(export.family.encoded.node)
    if export.manifest.schedule is None:
        raise ArtifactError(f"{export.out} has no noise schedule in its manifest; export again with --encoder")


def pictures_of_checkpoint(
    checkpoint_dir: Path,
    requests: Sequence[Request],
    variant: Variant = TRAINED,
    sampler: SamplerPlan | None = None,
    given: Sequence[Given] | None = None,
    conditions: Sequence[Array] | None = None,
    starts: Sequence[Start] | None = None,
    negative: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Float32]:
    """Return one ``[H, W, 3]`` picture in [0, 1] per request, computed by torch in float32.

    ``requests``, ``given``, ``conditions``, ``starts``, ``negative``: as for :func:`pictures_of_artifacts`.
    ``tell``: called with a message about a prompt that is too long, or steps that the model was not trained for.

    Raises:
        UsageError: the checkpoint does not support the variant, or ``given`` is used in many steps for a UNet without
            inputs for in-painting.
    """
    checkpoint = open_checkpoint(checkpoint_dir).at(variant)
    if conditions is not None:
        Frame(checkpoint_dir, checkpoint.config.picture_shape, checkpoint.config.condition_shape).require_condition()
    for line in (advice_on_steps(checkpoint.config, sampler), *checkpoint.notes):
        if line:
            tell(line)
    pipeline = golden_source(checkpoint, sampler=sampler).pipeline
    return _pictures(pipeline, requests, given, conditions, starts, negative, tell)


def _pictures(
    pipeline: Pipeline,
    requests: Sequence[Request],
    given: Sequence[Given] | None,
    conditions: Sequence[Array] | None,
    starts: Sequence[Start] | None,
    negative: str | None,
    tell: Callable[[str], None],
) -> list[Float32]:
    if negative is not None and not (pipeline.steps and pipeline.steps.is_guided):
        raise UsageError("a negative prompt needs guidance: many steps with --guidance above 1")
    for prompt in dict.fromkeys([*(prompt for prompt, _ in requests), *([negative] if negative else [])]):
        cuts = [words_cut(folder, prompt, pipeline.text_length) for folder in pipeline.tokenizers.values()]
        if cut := next(filter(None, cuts), ""):
            tell(f"the prompt is longer than {pipeline.text_length} tokens; this is left out: {cut!r}")
    none = [None] * len(requests)
    rows = zip(requests, given or none, conditions or none, starts or none, strict=True)
    asked = [PictureRequest(*pair, one, condition, start, negative) for pair, one, condition, start in rows]
    if pipeline.edits:
        asked = [
            dataclasses.replace(one, start=None, edited=None if one.start is None else one.start.image) for one in asked
        ]
    return [values[MADE.key].astype(np.float32, copy=False) for values in pipeline.values(asked)]
