"""An export opened to make pictures: its components by name, its sizes, and its runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.errors import ArtifactError, UsageError
from md_export.models.families import family_named
from md_export.models.graph import Family
from md_export.models.prompts import StoredPrompts, read_prompts, text_encoders
from md_export.models.values import CONDITION, INPUT_IDS, SAMPLE
from md_export.models.walk import Steps, Tensors
from md_export.parity.golden.surface import packed, unpacked
from md_export.spec.artifact import ArtifactEntry, artifact_path, shape_of_input
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.names import whole_of
from md_export.spec.tensors import Array, Arrays
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
    """An export folder with its manifest, its artifacts by component, and what is stored if it has no text encoder."""

    out: Path
    manifest: Manifest
    entries: dict[str, ArtifactEntry]
    stored: StoredPrompts | None = None

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
    def text_length(self) -> int:
        """Number of token ids of a prompt; 0 for a model without text."""
        if self.stored is not None:
            return self.stored.length
        return (shape_of_input(self.entries.values(), INPUT_IDS.name) or (0,))[-1]

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
    family, stored = family_named(manifest.family), bool(manifest.stored_prompts)
    needed = [row.name for row in family.needed(stored)]
    if lacked := [name for name in needed if name not in entries]:
        raise ArtifactError(f"{out} has no {lacked[0]}; a picture needs all of {', '.join(needed)}: export them all")
    encodes = all(row.name in entries for row in text_encoders(family))
    return Export(out, manifest, entries, None if encodes else read_prompts(out))
