"""Exports opened for running their artifacts one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError, UsageError
from md_export.models.families import WIRING
from md_export.models.values import CONDITION
from md_export.models.walk import Steps, Tensors
from md_export.parity.golden.surface import packed, unpacked
from md_export.spec.artifact import ArtifactEntry, artifact_path
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.tensors import Array, Arrays
from md_export.targets.execution import execute, parts_of, take_steps


@dataclass(frozen=True)
class Export:
    """An export folder with its manifest, and its artifacts by component."""

    out: Path
    manifest: Manifest
    entries: dict[str, ArtifactEntry]

    @property
    def inpaints(self) -> bool:
        """Whether the UNet takes a picture's latents in addition to the noise."""
        return self.entries[WIRING.denoised.node].inputs[0].shape[1] > self.latent_shape[1]

    @property
    def image_side(self) -> int:
        """Side of a picture in pixels."""
        return self.entries[WIRING.image.node].outputs[0].shape[-1]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape ``[1, C, h, w]`` of noise and latents."""
        return (1, *self.entries[WIRING.image.node].inputs[0].shape[1:])

    @property
    def downscale(self) -> int:
        """Side of a latent cell in pixels."""
        return self.image_side // self.latent_shape[-1]

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """Shape ``[1, C, H, W]`` of the condition picture; None if the export takes none."""
        specs = [spec for entry in self.entries.values() for spec in entry.inputs]
        return next((spec.shape for spec in specs if spec.name == CONDITION.name), None)

    @property
    def neutral(self) -> dict[str, Array]:
        """Neutral values for the inputs that a request without a condition does not provide."""
        rows = ((WIRING[name], entry) for name, entry in self.entries.items())
        return {key: value for row, entry in rows for key, value in row.neutral(entry.inputs).items()}

    def entry(self, component: str) -> ArtifactEntry:
        """Return a component's manifest entry; raises ArtifactError if the export has no such component."""
        if component not in self.entries:
            raise ArtifactError(
                f"{self.out} has no {component}; export it, too: md-export {self.manifest.target} --encoder"
            )
        return self.entries[component]

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Run a component and return all outputs for each set of inputs, under md-export's names.

        Raises:
            ArtifactError: the export has no such component.
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
        if steps.sampler.guidance is None:
            steps.take(self.run, pictures)
        else:
            take_steps(self.manifest.target, parts_of(self.out, self.manifest, steps, pictures), steps, pictures)


def open_to_run(out: Path) -> Export:
    """Open an export to make pictures; raises :class:`ArtifactError` if it lacks a required component."""
    manifest = read_manifest(out)
    entries = {entry.component: entry for entry in manifest.artifacts}
    needed = [row.name for row in WIRING.required]
    for name in needed:
        if name not in entries:
            raise ArtifactError(f"{out} has no {name}; a picture needs all of {', '.join(needed)}: export them all")
    return Export(out, manifest, entries)


@dataclass(frozen=True)
class Frame:
    """Dimensions of a model's pictures.

    Attributes:
        where: folder of the export or the checkpoint.
        side: side of the pictures in pixels.
        condition: shape ``[1, C, H, W]`` of the condition picture; None if the model takes none.
    """

    where: Path
    side: int
    condition: tuple[int, ...] | None

    def require_condition(self) -> tuple[int, ...]:
        """Return the shape ``[1, C, H, W]`` of the condition picture; raises UsageError if the model takes none."""
        if self.condition is None:
            raise UsageError(
                f"{self.where}: this model takes no condition picture; give its checkpoint an adapter with md-export "
                "adapt CHECKPOINT --adapter FOLDER, or --controlnet FOLDER, and use or export that"
            )
        return self.condition


def frame_of(export: Export) -> Frame:
    """Return the dimensions of the pictures that an opened export makes."""
    return Frame(export.out, export.image_side, export.condition_shape)


def frame_of_artifacts(out: Path) -> Frame:
    """Return the dimensions of the pictures that an export makes; raises as :func:`open_to_run` does."""
    return frame_of(open_to_run(out))


def frame_of_checkpoint(checkpoint_dir: Path, size: int | None = None) -> Frame:
    """Return the dimensions of a checkpoint's pictures; raises UsageError if it does not support ``size``."""
    config = open_checkpoint(checkpoint_dir).at(size).config
    return Frame(checkpoint_dir, config.image_size, config.condition_shape)
