"""An export as whoever judges it opens it: its manifest, and golden cases and a checkpoint that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from md_export.checkpoint import Checkpoint
from md_export.errors import ArtifactError, GoldenError
from md_export.models.families import WIRING
from md_export.models.given import LATENT
from md_export.parity.golden.folder import INDEX, GoldenSet, read_golden
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.sampler import steps_in_words


@dataclass(frozen=True)
class OpenedExport:
    """A folder that md-export wrote, its manifest, and the golden cases that it is judged by."""

    out: Path
    manifest: Manifest
    golden: GoldenSet


def open_export(out: Path, golden_dir: Path | None = None) -> OpenedExport:
    """Read the manifest in ``out`` and the golden cases in ``golden_dir``, by default those that lie in ``out``.

    Raises:
        ArtifactError: the manifest is unreadable.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
    """
    manifest, golden = read_manifest(out), read_golden(golden_dir or out / GOLDEN_FOLDER)
    check_belongs(manifest, golden, own=golden_dir is None)
    return OpenedExport(out, manifest, golden)


def check_belongs(manifest: Manifest, golden: GoldenSet, own: bool) -> None:
    """Raise :class:`GoldenError` where the golden cases are of another checkpoint, or are ``own`` and were altered."""
    if golden.index.checkpoint_sha256 != manifest.checkpoint_sha256:
        raise GoldenError(
            f"{golden.folder} holds golden cases of another checkpoint "
            f"({golden.index.checkpoint_sha256[:12]}, the artifacts were made from {manifest.checkpoint_sha256[:12]}); "
            "pass the right folder with --golden, or export again"
        )
    if golden.index.one_step != manifest.one_step:
        raise GoldenError(
            f"{golden.folder} was made with other one-step constants than the manifest's; one of the two was edited, "
            "export again"
        )
    if golden.index.steps != manifest.steps:
        raise GoldenError(
            f"{golden.folder} holds golden cases of {steps_in_words(golden.index.steps)}, the artifacts are for "
            f"{steps_in_words(manifest.steps)}; pass the right folder with --golden, or export again"
        )
    if not own:
        _check_size(manifest, golden)
    if own and golden.sha256 != manifest.golden_sha256:
        raise GoldenError(f"{golden.folder / INDEX} was altered since the export; export again")


def _check_size(manifest: Manifest, golden: GoldenSet) -> None:
    """Raise :class:`GoldenError` where the cases are of pictures of another size."""
    rows = ((entry, WIRING[entry.component]) for entry in manifest.artifacts)
    latents = [entry.inputs[0].shape for entry, row in rows if row.inputs[0].source.kind is LATENT]
    found = golden.cases[0].latent_sides
    if latents and latents[0][2:] != found:
        wanted, size = (" × ".join(map(str, shape)) for shape in (latents[0][2:], found))
        raise GoldenError(
            f"{golden.folder} holds golden cases of another size: latents of {size}, the artifacts take {wanted}; pass "
            "cases of their size with --golden, or leave it out"
        )


def check_checkpoint(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise :class:`ArtifactError` where the export was made from another checkpoint."""
    if checkpoint.sha256() != manifest.checkpoint_sha256:
        loras = " and ".join(f"{lora.name} ({lora.sha256[:12]}) at {lora.scale:g}" for lora in manifest.loras)
        what = "the one that they were exported from"
        if loras:
            how = "with --lora FILE:scale, or as the folder that md-export adapt writes"
            what = f"{what} and its LoRAs, {loras}: {how}"
        raise ArtifactError(
            f"the artifacts were made from the checkpoint {manifest.checkpoint_sha256[:12]}, {checkpoint.title} is "
            f"{checkpoint.sha256()[:12]}; name {what}"
        )
