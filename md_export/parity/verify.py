"""Every artifact on every golden case, and the whole chain to the picture, judged by the recipe's thresholds.

A component is run on its golden inputs and compared with its golden outputs; the chain feeds each artifact
what the artifacts before it made. Finite first, then shape and dtype, then the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from md_export.artifact import (
    GOLDEN_FOLDER,
    ArtifactEntry,
    Manifest,
    Parity,
    artifact_path,
    is_unchanged,
    read_manifest,
)
from md_export.errors import GoldenError, MdExportError
from md_export.layouts import layout_of
from md_export.parity.contents import claim_faults, note_faults, stored_faults, surface_faults
from md_export.parity.faults import Check, Fault
from md_export.parity.golden import GoldenSet, read_golden
from md_export.parity.metrics import compare, first_fault, worst
from md_export.recipe import Tolerance
from md_export.sampling import Float32, latent_from, only_output, picture_from
from md_export.targets import target_named
from md_export.tensors import Array, Arrays, select
from md_export.workers import Execution, execute

# Runs an artifact of a target on batches, as :func:`md_export.workers.execute` does.
Execute = Callable[[str, Path, Sequence[Arrays]], Execution]


@dataclass(frozen=True)
class ComponentResult:
    """One artifact's verdict; ``parity`` is None where a fault kept it from being computed.

    ``faults`` of a judged export are :class:`Fault`, which know their check.
    """

    component: str
    file: str
    parity: Parity | None
    tolerance: Tolerance
    faults: tuple[str, ...]


@dataclass(frozen=True)
class PictureResult:
    """The chain's verdict: worst PSNR of the final picture over all cases, peak taken from the reference."""

    psnr_db: float | None
    least_psnr_db: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class VerifyResult:
    """All verdicts of one export; ``picture`` is None where a component is missing from it."""

    target: str
    recipe: str
    cases: int
    components: tuple[ComponentResult, ...]
    picture: PictureResult | None

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each thing that falls short, the component's name first."""
        lines = [f"{item.component}: {fault}" for item in self.components for fault in item.faults]
        picture = self.picture.faults if self.picture else ()
        return (*lines, *(f"picture: {fault}" for fault in picture))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """All faults in order, each of which knows its check."""
        texts = [fault for item in (*self.components, self.picture) if item for fault in item.faults]
        return tuple(fault for fault in texts if isinstance(fault, Fault))

    @property
    def passed(self) -> bool:
        """Whether nothing falls short."""
        return not self.failures


@dataclass(frozen=True)
class Verification:
    """A verdict and what it was reached on.

    Attributes:
        pictures: the artifacts', ``[H, W, 3]`` in [0, 1], one per golden case; none where the chain broke off.
    """

    manifest: Manifest
    result: VerifyResult
    golden: GoldenSet
    pictures: tuple[Float32, ...]


def verify(out: Path, golden_dir: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> VerifyResult:
    """The verdict of :func:`judge` alone."""
    return judge(out, golden_dir, progress).result


def judge(
    out: Path,
    golden_dir: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    execute: Execute = execute,
) -> Verification:
    """Judge the export in ``out`` against ``golden_dir``, by default the golden cases that lie in ``out``.

    ``execute`` runs an artifact; by default in a process of its own.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        MissingExtraError: the target's runtime is not installed.
    """
    manifest = read_manifest(out)
    target_named(manifest.target).require()
    golden = read_golden(golden_dir or out / GOLDEN_FOLDER)
    check_belongs(manifest, golden, own=golden_dir is None)
    chain: dict[str, list[Array]] = {}
    results = []
    for entry in manifest.artifacts:
        progress(f"verify {manifest.target} {entry.component} on {len(golden.cases)} golden cases")
        verdict, outputs = _judge_component(out, manifest, entry, golden, chain, execute)
        results.append(verdict)
        chain[entry.component] = outputs
    whole = len(manifest.artifacts) == len(_CHAIN)
    pictures = tuple(picture_from(image) for image in chain["vae_decoder"]) if whole else ()
    picture = _judge_picture(manifest, golden, pictures) if whole else None
    result = VerifyResult(manifest.target, manifest.recipe.name, len(golden.cases), tuple(results), picture)
    return Verification(manifest, result, golden, pictures)


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
    if own and golden.sha256 != manifest.golden_sha256:
        raise GoldenError(f"{golden.folder / 'index.json'} was altered since the export; export again")


def _judge_component(
    out: Path,
    manifest: Manifest,
    entry: ArtifactEntry,
    golden: GoldenSet,
    chain: dict[str, list[Array]],
    execute: Execute,
) -> tuple[ComponentResult, list[Array]]:
    path = artifact_path(out, entry)
    tolerance, scheme = manifest.recipe.tolerances[entry.component], manifest.recipe.schemes[entry.component]
    faults = altered_faults(out, entry)
    golden_inputs = [case.inputs(entry.component) for case in golden.cases]
    batches = [*golden_inputs, *_chain_inputs(manifest, entry, golden, chain)]
    try:
        layout = layout_of(manifest.recipe)
        chosen = [select(layout.pack(entry.component, batch), entry.inputs) for batch in batches]
        (made,) = entry.outputs
        wanted = [case.output(layout.output_of(entry.component, made.name)) for case in golden.cases]
    except (KeyError, ValueError) as error:
        edited = f"the manifest's inputs and outputs are not this component's ({error}); it was edited"
        fault = Fault(Check.SURFACE, edited)
        return ComponentResult(entry.component, entry.file, None, tolerance, (*faults, fault)), []
    faults += surface_faults(entry, chosen[0], wanted[0])
    try:
        run = execute(manifest.target, path, chosen)
        outputs = [only_output(item) for item in run.outputs]
        faults += [Fault(Check.OVERFLOW, line) for line in run.hazards]
        faults += note_faults(manifest, entry, run.found.notes) + claim_faults(out, entry, scheme, run.found)
    except MdExportError as error:
        failed = Fault(Check.EXECUTION, str(error))
        return ComponentResult(entry.component, entry.file, None, tolerance, (*faults, failed)), []
    count = len(golden.cases)
    parity, broken = worst_parity(outputs[:count], wanted, [case.name for case in golden.cases])
    faults += (shortfalls(parity, tolerance) if parity else broken) + stored_faults(entry, scheme, run.found)
    chained = outputs[count:] if parity else []
    return ComponentResult(entry.component, entry.file, parity, tolerance, tuple(faults)), chained


def altered_faults(out: Path, entry: ArtifactEntry) -> list[Fault]:
    """Whether the artifact is the one that the manifest was written for."""
    text = "its bytes are not those of the manifest; it was altered"
    return [] if is_unchanged(out, entry) else [Fault(Check.BYTES, text)]


def worst_parity(made: list[Array], wanted: list[Array], names: Sequence[str]) -> tuple[Parity | None, list[Fault]]:
    """Worst figures over all cases; None, and what is wrong with each, where one cannot be compared at all."""
    cases = list(zip(made, wanted, names, strict=True))
    broken = [fault.of(name) for got, want, name in cases if (fault := first_fault(got, want))]
    return (None, broken) if broken else (worst([compare(got, want) for got, want, _ in cases]), [])


# Which component feeds which input of the next one in the chain.
_CHAIN = ("text_encoder", "unet", "vae_decoder")


def _chain_inputs(
    manifest: Manifest, entry: ArtifactEntry, golden: GoldenSet, chain: dict[str, list[Array]]
) -> list[Arrays]:
    """The golden inputs with what the artifacts before this one made in place of the golden values."""
    if entry.component == "text_encoder":
        return [case.inputs("text_encoder") for case in golden.cases]
    before = chain.get(_CHAIN[_CHAIN.index(entry.component) - 1], [])
    batches: list[Arrays] = []
    for case, value in zip(golden.cases, before, strict=False):
        if entry.component == "unet":
            batches.append({**case.inputs("unet"), "encoder_hidden_states": value})
        else:
            batches.append({"latent": latent_of(manifest, case.values.noise, value)})
    return batches


def latent_of(manifest: Manifest, noise: Array, unet_output: Array) -> Array:
    """What the decoder takes; an artifact whose graph ends in the latent has computed it already."""
    (unet,) = [entry for entry in manifest.artifacts if entry.component == "unet"]
    folded = unet.outputs[0].name == "latent"
    return unet_output if folded else latent_from(noise, unet_output, manifest.one_step)


def _judge_picture(manifest: Manifest, golden: GoldenSet, pictures: tuple[Float32, ...]) -> PictureResult:
    least = manifest.recipe.picture_psnr_db
    if not pictures:
        return PictureResult(None, least, (Fault(Check.PICTURE, "no picture, since a component before it failed"),))
    figures = []
    for case, picture in zip(golden.cases, pictures, strict=True):
        fault = first_fault(picture, case.values.picture)
        if fault:
            return PictureResult(None, least, (Fault(Check.PICTURE, f"{case.name}: {fault}"),))
        figures.append(compare(picture, case.values.picture).psnr_db)
    psnr = float(np.min(figures))
    if psnr >= least:
        return PictureResult(psnr, least, ())
    return PictureResult(psnr, least, (Fault(Check.PICTURE, f"PSNR {psnr:.1f} dB is below the recipe's {least:g} dB"),))


def shortfalls(parity: Parity, tolerance: Tolerance) -> list[Fault]:
    """Each threshold that is not met. Written so that a NaN figure falls short."""
    lines = []
    for name, unit in (("snr_db", " dB"), ("psnr_db", " dB"), ("cosine", "")):
        least, value = getattr(tolerance, name), getattr(parity, name)
        if least is not None and not value >= least:
            lines.append(f"{name.removesuffix('_db')} {value:.4g}{unit} is below the recipe's {least:g}{unit}")
    if tolerance.max_abs is not None and not parity.max_abs <= tolerance.max_abs:
        lines.append(f"max error {parity.max_abs:.4g} is above the recipe's {tolerance.max_abs:g}")
    return [Fault(Check.FIGURES, line) for line in lines]
