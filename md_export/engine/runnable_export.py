"""An export, opened to run its artifacts one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.errors import ArtifactError, UsageError
from md_export.models.sampling.generate import only_output
from md_export.parity.chain import CHAIN
from md_export.spec.artifact import ArtifactEntry, artifact_path
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.tensors import Array, Arrays, select
from md_export.targets.execution import execute
from md_export.targets.layouts import layout_of


@dataclass(frozen=True)
class Export:
    """A folder that md-export wrote, and its artifacts by component."""

    out: Path
    manifest: Manifest
    entries: dict[str, ArtifactEntry]

    @property
    def inpaints(self) -> bool:
        """Whether its UNet takes a picture's latents beside the noise."""
        return self.entries["unet"].inputs[0].shape[1] > self.latent_shape[1]

    @property
    def image_side(self) -> int:
        """Of a picture, in pixels."""
        return self.entries["vae_decoder"].outputs[0].shape[-1]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """``[1, C, h, w]`` of noise and latents."""
        return (1, *self.entries["vae_decoder"].inputs[0].shape[1:])

    @property
    def downscale(self) -> int:
        """Pixels of a latent cell along a side."""
        return self.image_side // self.latent_shape[-1]

    @property
    def condition_shape(self) -> tuple[int, ...] | None:
        """``[1, C, H, W]`` of the condition picture that it takes; None where it takes none."""
        specs = [spec for entry in self.entries.values() for spec in entry.inputs]
        return next((spec.shape for spec in specs if spec.name == "condition"), None)

    def path(self, name: str) -> Path:
        """Of a component's artifact."""
        return artifact_path(self.out, self.entries[name])

    def run(self, name: str, batches: Sequence[Arrays]) -> list[Array]:
        """One output for each set of inputs, under our names."""
        return [only_output(outputs) for outputs in self.outputs(name, batches)]

    def outputs(self, name: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """All outputs for each set of inputs.

        Raises:
            ArtifactError: the export has no such component.
            RuntimeFault: the artifact does not run.
        """
        if name not in self.entries:
            raise ArtifactError(f"{self.out} has no {name}; export it, too: md-export {self.manifest.target} --encoder")
        entry = self.entries[name]
        layout = layout_of(self.manifest.recipe)
        chosen = [select(layout.pack(name, batch), entry.inputs) for batch in batches]
        return execute(self.manifest.target, artifact_path(self.out, entry), chosen).outputs


def open_to_run(out: Path) -> Export:
    """An export that pictures can be made with; raises :class:`ArtifactError` where it lacks what all need."""
    manifest = read_manifest(out)
    entries = {entry.component: entry for entry in manifest.artifacts}
    for name in CHAIN:
        if name not in entries:
            raise ArtifactError(f"{out} has no {name}; a picture needs all of {', '.join(CHAIN)}: export them all")
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
