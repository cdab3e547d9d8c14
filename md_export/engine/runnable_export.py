"""An export, opened to run its artifacts one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError, UsageError
from md_export.models.families import WIRING
from md_export.models.given import CONDITION
from md_export.models.walk import Steps, Tensors
from md_export.parity.golden.surface import packed, unpacked
from md_export.spec.artifact import ArtifactEntry, artifact_path
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.tensors import Array, Arrays
from md_export.targets.execution import execute, parts_of, take_steps


@dataclass(frozen=True)
class Export:
    """A folder that md-export wrote, and its artifacts by component."""

    out: Path
    manifest: Manifest
    entries: dict[str, ArtifactEntry]

    @property
    def inpaints(self) -> bool:
        """Whether its UNet takes a picture's latents beside the noise."""
        return self.entries[WIRING.denoised.node].inputs[0].shape[1] > self.latent_shape[1]

    @property
    def image_side(self) -> int:
        """Of a picture, in pixels."""
        return self.entries[WIRING.image.node].outputs[0].shape[-1]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """``[1, C, h, w]`` of noise and latents."""
        return (1, *self.entries[WIRING.image.node].inputs[0].shape[1:])

    @property
    def downscale(self) -> int:
        """Pixels of a latent cell along a side."""
        return self.image_side // self.latent_shape[-1]

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """``[1, C, H, W]`` of the condition picture that it takes; None where it takes none."""
        specs = [spec for entry in self.entries.values() for spec in entry.inputs]
        return next((spec.shape for spec in specs if spec.name == CONDITION.name), None)

    @property
    def neutral(self) -> dict[str, Array]:
        """Values that add nothing, for inputs of its artifacts that a request without a condition leaves empty."""
        rows = ((WIRING[name], entry) for name, entry in self.entries.items())
        return {key: value for row, entry in rows for key, value in row.neutral(entry.inputs).items()}

    def entry(self, component: str) -> ArtifactEntry:
        """Return a component's artifact; ArtifactError where the export has none."""
        if component not in self.entries:
            raise ArtifactError(
                f"{self.out} has no {component}; export it, too: md-export {self.manifest.target} --encoder"
            )
        return self.entries[component]

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """All outputs for each set of inputs, under our names.

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
        """Take many steps in one process."""
        if steps.sampler.guidance is None:
            steps.take(self.run, pictures)
        else:
            take_steps(self.manifest.target, parts_of(self.out, self.manifest, steps, pictures), steps, pictures)


def open_to_run(out: Path) -> Export:
    """An export that pictures can be made with; raises :class:`ArtifactError` where it lacks what all need."""
    manifest = read_manifest(out)
    entries = {entry.component: entry for entry in manifest.artifacts}
    needed = [row.name for row in WIRING.required]
    for name in needed:
        if name not in entries:
            raise ArtifactError(f"{out} has no {name}; a picture needs all of {', '.join(needed)}: export them all")
    return Export(out, manifest, entries)


@dataclass(frozen=True)
class Frame:
    """Of the pictures of a model, ``where``: their ``side`` in pixels, and ``[1, C, H, W]`` of a condition, if any."""

    where: Path
    side: int
    condition: tuple[int, ...] | None

    def require_condition(self) -> tuple[int, ...]:
        """``[1, C, H, W]`` of the condition picture; UsageError where the model takes none."""
        if self.condition is None:
            raise UsageError(
                f"{self.where}: this model takes no condition picture; give its checkpoint an adapter with md-export "
                "adapt CHECKPOINT --adapter FOLDER, or --controlnet FOLDER, and use or export that"
            )
        return self.condition


def frame_of(export: Export) -> Frame:
    """Of the pictures that an opened export makes."""
    return Frame(export.out, export.image_side, export.condition_shape)


def frame_of_artifacts(out: Path) -> Frame:
    """Of the pictures that an export makes; raises as :func:`md_export.engine.runnable_export.open_to_run`."""
    return frame_of(open_to_run(out))


def frame_of_checkpoint(checkpoint_dir: Path, size: int | None = None) -> Frame:
    """Of the pictures that a checkpoint makes; UsageError where it makes none of that ``size``."""
    config = open_checkpoint(checkpoint_dir).at(size).config
    return Frame(checkpoint_dir, config.image_size, config.condition_shape)
