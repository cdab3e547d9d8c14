"""The Python API: the functions of the command line for scripts and notebooks.

    import md_export

    checkpoint = md_export.nano_checkpoint()                       # or the folder of yours
    export = md_export.export("onnx-int8", checkpoint, "out")      # artifacts, each verified
    print(md_export.verify(export))                                # a table; in a notebook, HTML
    outputs = export.runner("unet").predict(inputs)                # arrays by name

Paths are strings or :class:`os.PathLike`; an export can be given wherever the path of its folder can. Nothing is
printed unless ``progress`` is given. All errors are subclasses of :class:`md_export.errors.MdExportError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from md_export.api.arguments import Options, path_of
from md_export.api.results import CheckResult, Export, Runner, audit_tables, verdict_tables
from md_export.errors import UsageError
from md_export.spec.manifest import read_manifest
from md_export.spec.names import Method
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe as load_recipe_file
from md_export.spec.shipped_files import recipe_file
from md_export.spec.variant import Chunks, Size

if TYPE_CHECKING:
    from PIL.Image import Image

    from md_export.checkpoint import Checkpoint
    from md_export.parity.verdict import Verdict
    from md_export.parity.weights.audit import AuditResult

__all__ = [
    "CheckResult",
    "Export",
    "Runner",
    "audit",
    "export",
    "generate",
    "load_recipe",
    "nano_checkpoint",
    "open_checkpoint",
    "open_export",
    "verify",
]
StrPath = str | os.PathLike[str]
Progress = Callable[[str], None]


def load_recipe(recipe: StrPath) -> Recipe:
    """Read a recipe: the name of one that ships, such as ``coreml-fp16``, or the path of a ``.toml`` file.

    A file of that name in the working directory is preferred to the recipe that ships.

    Raises:
        RecipeError: no such recipe (the message lists those that ship), or an unknown, missing or wrong field.
    """
    return load_recipe_file(recipe_file(path_of(recipe)))


def nano_checkpoint() -> Path:
    """Return the folder of the small trained checkpoint that ships: 3.4 M parameters, 64×64 pictures, one step."""
    from md_export.spec.shipped_files import nano_checkpoint as shipped

    return shipped()


def open_checkpoint(checkpoint: StrPath) -> Checkpoint:
    """Open a checkpoint folder: its configs, and its torch modules when they are asked for.

    Raises:
        CheckpointError, ConfigError: the folder is no checkpoint that md-export can read.
    """
    from md_export.checkpoint import open_checkpoint as open_folder

    return open_folder(path_of(checkpoint))


def export(
    recipe: Recipe | StrPath,
    checkpoint: StrPath,
    out: StrPath,
    *,
    components: Sequence[str] = (),
    loras: Sequence[str] = (),
    size: Size | None = None,
    timestep: int | None = None,
    clip_skip: int = 0,
    chunks: Chunks | None = None,
    prompts: Sequence[str] = (),
    text_encoder: bool = True,
    steps: int | None = None,
    sampler: Method | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    golden: StrPath | None = None,
    progress: Progress | None = None,
) -> Export:
    """Export a checkpoint to artifacts, run each in its runtime and verify it against golden outputs.

    Args:
        recipe: a recipe, its path, or the name of one that ships: see :func:`load_recipe`. Its name begins with the
            target.
        checkpoint: folder in diffusers' layout.
        out: folder to write; must not exist. It appears whole and verified, or not at all.
        components: only these components, and those that only some recipes have (``vae_encoder``).
        loras: LoRAs to fuse into the weights, each ``FILE`` or ``FILE:scale``.
        size: side of the pictures in pixels, or width and height (default: the checkpoint's).
        timestep: timestep of the one step (default: the checkpoint's last).
        clip_skip: number of the text encoder's last layers to leave out, as diffusers' ``clip_skip``.
        chunks: number of files to cut the denoiser into, or ``"auto"``: as many as keep each below 1 GB.
        prompts: prompts whose text embeddings the export stores, in ``prompts.safetensors``.
        text_encoder: export the text encoders, too; without them only the stored prompts make pictures.
        steps: number of sampling steps (default: the recipe's, or one).
        sampler: sampling method, with ``steps`` (default: that of the recipe or of the checkpoint's scheduler).
        guidance: scale of classifier-free guidance, with ``steps``; 1: none (default: the recipe's, or 7.5).
        negative: prompt that guidance leads away from (default: the empty prompt).
        golden: folder of golden cases to calibrate on and to verify with (default: the checkpoint's, or new ones).
        progress: called with a line when a step begins.

    Raises:
        ParityError: an artifact is below a threshold of the recipe; the rejected export is in ``<out>.rejected``.
        OutputError: ``out`` exists or cannot be written.
        RecipeError, CheckpointError, ConfigError, RewriteError, ConversionError, MissingExtraError: see
            :mod:`md_export.errors`.
    """
    from md_export.engine.export import export as run

    given = Options.of(
        loras=loras,
        prompts=prompts,
        components=components,
        size=size,
        timestep=timestep,
        clip_skip=clip_skip,
        chunks=chunks,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        negative=negative,
    )
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    asked = (
        loaded.widened(given.components)
        .narrowed(given.components)
        .sampled(given.steps, given.guidance, given.sampler, given.negative)
        .varied(given.variant)
        .adapted(given.loras)
        .prompted(given.prompts, text_encoder)
    )
    folder = path_of(out)
    manifest, _ = run(asked, path_of(checkpoint), folder, _optional(golden), progress or _silent)
    return Export(folder, manifest)


def open_export(out: StrPath) -> Export:
    """Open a folder that md-export wrote; only its manifest is read.

    Raises:
        ArtifactError: it holds no manifest, or one that cannot be read.
    """
    folder = path_of(out)
    return Export(folder, read_manifest(folder))


def verify(
    out: StrPath,
    *,
    golden: StrPath | None = None,
    checkpoint: StrPath | None = None,
    loras: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckResult[Verdict]:
    """Run every artifact of an export on every golden case, and the chain to the picture; compare with the thresholds.

    Args:
        out: the export, or its folder.
        golden: folder of golden cases (default: those in the export).
        checkpoint: checkpoint of the export; golden cases, constants and files are then derived from it once more.
        loras: LoRAs that it was exported with, fused or as styles, with ``checkpoint``; each ``FILE`` or
            ``FILE:scale``.
        progress: called with a line when a component begins.

    Returns:
        the figures of each component, SNR and PSNR in dB; an export below a threshold is a result, not an error.

    Raises:
        ArtifactError: the manifest cannot be read, an artifact is missing, or the checkpoint is another one.
        GoldenError: the golden cases cannot be read, were altered, or are of another checkpoint.
        MissingExtraError: the target's runtime is not installed.
        UsageError: LoRAs without ``checkpoint``.
    """
    from md_export.engine.against_checkpoint import verify as verify_against
    from md_export.parity.judge import verify as judge

    tell, given = progress or _silent, Options.of(loras=loras)
    if checkpoint is None and given.loras:
        raise UsageError("loras are added to the checkpoint, which is not given; add checkpoint=")
    if checkpoint is None:
        found = judge(path_of(out), _optional(golden), tell)
    else:
        found = verify_against(path_of(out), path_of(checkpoint), _optional(golden), tell, given.loras)
    return CheckResult(found.passed, found.failures, found, verdict_tables)


def audit(
    out: StrPath, checkpoint: StrPath, *, loras: Sequence[str] = (), progress: Progress | None = None
) -> CheckResult[AuditResult]:
    """Decode every weight that an export stores and compare it with the checkpoint, within the rounding of its scheme.

    Golden cases, tokenizer, constants, metadata and graphs are derived from the checkpoint once more.

    Args:
        out: the export, or its folder.
        checkpoint: folder of the checkpoint that it was made from.
        loras: LoRAs that it was exported with, fused or as styles, each ``FILE`` or ``FILE:scale``.
        progress: called with a line when a component begins.

    Returns:
        the audit of each component; a weight that differs is a result, not an error.

    Raises:
        ArtifactError: the manifest cannot be read, an artifact is missing, or the checkpoint is another one.
        CheckpointError: the checkpoint cannot be read.
        MissingExtraError: the target's libraries are not installed.
    """
    from md_export.engine.against_checkpoint import audit as audit_against

    given = Options.of(loras=loras).loras
    found = audit_against(path_of(out), path_of(checkpoint), progress or _silent, given)
    return CheckResult(found.passed, found.failures, found, audit_tables)


def generate(
    prompt: str,
    *,
    artifacts: StrPath | None = None,
    checkpoint: StrPath | None = None,
    seed: int = 0,
    negative: str | None = None,
    init_image: StrPath | None = None,
    strength: float | None = None,
    mask: StrPath | None = None,
    condition: StrPath | None = None,
    size: Size | None = None,
    timestep: int | None = None,
    clip_skip: int = 0,
    steps: int | None = None,
    sampler: Method | None = None,
    guidance: float | None = None,
    loras: Sequence[str] = (),
    progress: Progress | None = None,
) -> Image:
    """Generate a picture with the artifacts of an export, or with a checkpoint in torch.

    Args:
        artifacts: the export, or its folder; its steps, size and LoRAs are fixed.
        checkpoint: folder of the checkpoint to run in torch; give one of the two.
        seed: seed of the noise.
        negative: prompt that guidance leads away from, with many steps.
        init_image: PNG or JPEG to start from, in the size of the model's pictures; needs the VAE encoder.
        strength: share of ``init_image`` to change, in (0, 1] (default: 0.8).
        mask: picture of the same size; what is white is painted anew and the rest of ``init_image`` is kept.
        condition: condition picture for the adapter or the ControlNet, such as edges.
        size, timestep, clip_skip, steps, sampler, guidance, loras: as for :func:`export`, with ``checkpoint``.
        progress: called with a line for a prompt that is too long, and for steps that the model was not trained for.

    Returns:
        an RGB image of 8 bits; ``numpy.asarray(image)`` is uint8 ``[H, W, 3]``.

    Raises:
        UsageError: arguments that contradict each other, or a picture that cannot be used.
        ArtifactError, CheckpointError: the export or the checkpoint cannot be read, or lacks a component.
        RuntimeFault: an artifact does not run.
        OutputError: the picture holds NaN or Inf.
    """
    from md_export.engine.picture import GivenFiles, Source, picture
    from md_export.models.sampling.pictures import as_image
    from md_export.spec.sampler import sampler_of

    given = Options.of(
        loras=loras,
        size=size,
        timestep=timestep,
        clip_skip=clip_skip,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        negative=negative,
    )
    source = Source(
        _optional(artifacts),
        _optional(checkpoint),
        replace(given.variant, guidance=given.guidance),
        sampler_of(given.steps, given.guidance, given.sampler),
        given.loras,
    )
    files = GivenFiles(_optional(init_image), strength, _optional(mask), _optional(condition))
    return as_image(picture(prompt, seed, source, files, negative, progress or _silent))


def _optional(path: StrPath | None) -> Path | None:
    return None if path is None else path_of(path)


def _silent(_: str) -> None:
    """Print nothing."""
