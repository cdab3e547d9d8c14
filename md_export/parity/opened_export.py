"""Open an export for verification, and check the parts of its contents that do not depend on outputs.

The golden cases and the checkpoint must belong to its manifest, and the artifacts must be what the manifest claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_letters
from typing import Final

from md_export.checkpoint import Checkpoint
from md_export.checkpoint.files import hash_of_files, hash_of_folder
from md_export.errors import ArtifactError, GoldenError
from md_export.models.families import family_named
from md_export.models.values import LATENT
from md_export.parity.golden.folder import INDEX, GoldenSet, read_golden
from md_export.parity.metrics import Check, Fault
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, artifact_path, bytes_of_artifact
from md_export.spec.manifest import AddedLora, Manifest, read_manifest
from md_export.spec.names import chunk_number
from md_export.spec.recipe import Recipe
from md_export.spec.sampler import steps_in_words
from md_export.spec.scheme import QuantScheme, stored_type
from md_export.spec.style import keyed, style_values
from md_export.spec.tensors import Array, Arrays
from md_export.targets import TARGETS, suffix_of
from md_export.targets.contract import Description
from md_export.targets.layouts import layout_of


@dataclass(frozen=True)
class OpenedExport:
    """An export's folder, its manifest, and the golden cases to judge it by."""

    out: Path
    manifest: Manifest
    golden: GoldenSet


def open_export(out: Path, golden_dir: Path | None = None) -> OpenedExport:
    """Read the manifest in ``out`` and the golden cases in ``golden_dir`` (default: those in ``out``).

    Raises:
        ArtifactError: the manifest is unreadable.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
    """
    manifest, golden = read_manifest(out), read_golden(golden_dir or out / GOLDEN_FOLDER)
    check_belongs(manifest, golden, own=golden_dir is None)
    return OpenedExport(out, manifest, with_styles(out, manifest, golden))


def with_styles(out: Path, manifest: Manifest, golden: GoldenSet) -> GoldenSet:
    """Return golden cases with the values of their styles, as the export has them, for the artifacts' inputs.

    Raises:
        ArtifactError: a file of a style is missing, or is not for these artifacts.
        GoldenError: a case names a style that the export does not have.
    """
    known = {style.name: style for style in manifest.styles}
    if strangers := [case for case in golden.cases if case.style is not None and case.style not in known]:
        raise GoldenError(
            f"{golden.folder}: {strangers[0].name} is of the style {strangers[0].style!r:.80}, which the export does "
            f"not have; it has {', '.join(known) or 'none'}"
        )
    values = {name: values_of_style(out, manifest, style) for name, style in known.items()}
    cases = (replace(case, values={**case.values, **values.get(case.style or "", {})}) for case in golden.cases)
    return replace(golden, cases=tuple(cases)) if known else golden


def values_of_style(out: Path, manifest: Manifest, style: AddedLora) -> dict[str, Array]:
    """Return a style's values for the inputs of all artifacts, under their keys among the values of a picture.

    Raises:
        ArtifactError: a file is missing, or is not for these artifacts.
    """
    entries = [entry for entry in manifest.artifacts if entry.component in style.components]
    found = {entry.component: style_values(out, style.name, entry.component, entry.inputs) for entry in entries}
    return {key: value for component, values in found.items() for key, value in keyed(component, values).items()}


def check_belongs(manifest: Manifest, golden: GoldenSet, own: bool) -> None:
    """Raise :class:`GoldenError` if the golden cases do not suit the manifest, or are its ``own`` and altered."""
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
    if (golden.index.clip_skip or 0) != manifest.recipe.clip_skip:
        raise GoldenError(
            f"{golden.folder} holds golden cases of a text encoder without its last {golden.index.clip_skip or 0} "
            f"layers, the artifacts leave out {manifest.recipe.clip_skip}; pass the right folder with --golden, or "
            "export again"
        )
    if golden.index.steps != manifest.steps:
        raise GoldenError(
            f"{golden.folder} holds golden cases of {steps_in_words(golden.index.steps)}, the artifacts are for "
            f"{steps_in_words(manifest.steps)}; pass the right folder with --golden, or export again"
        )
    if golden.index.family != manifest.family:
        raise GoldenError(
            f"{golden.folder} holds golden cases of other chunks than the artifacts; pass the right folder with "
            "--golden, or export again"
        )
    if not own:
        _check_size(manifest, golden)
    if own and golden.sha256 != manifest.golden_sha256:
        raise GoldenError(f"{golden.folder / INDEX} was altered since the export; export again")


def _check_size(manifest: Manifest, golden: GoldenSet) -> None:
    """Raise :class:`GoldenError` if the golden cases are for another picture size."""
    family = family_named(manifest.family)
    rows = ((entry, family[entry.component]) for entry in manifest.artifacts if chunk_number(entry.component) < 2)
    # The only input of a first chunk may be the timestep.
    latents = [
        entry.inputs[0].shape
        for entry, row in rows
        if row.inputs[0].source.kind is LATENT and len(entry.inputs[0].shape) == LATENT.rank
    ]
    found = golden.cases[0].latent_sides
    if latents and latents[0][2:] != found:
        wanted, size = (" × ".join(map(str, shape)) for shape in (latents[0][2:], found))
        raise GoldenError(
            f"{golden.folder} holds golden cases of another size: latents of {size}, the artifacts take {wanted}; pass "
            "cases of their size with --golden, or leave it out"
        )


def check_checkpoint(manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise :class:`ArtifactError` if the export was made from another checkpoint."""
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


def note_faults(manifest: Manifest, entry: ArtifactEntry, notes: Mapping[str, str]) -> list[Fault]:
    """Check the origin in the artifact's metadata, which recomputed hashes of the files cannot hide."""
    made_from, component = notes.get("source_sha256"), notes.get("component")
    if made_from is None or component is None:
        lines = ["its metadata does not name its checkpoint and component; export again"]
        return [Fault(Check.ORIGIN, line) for line in lines]
    lines = []
    if hash_of_files(manifest.checkpoint_files) != manifest.checkpoint_sha256:
        lines.append(
            "the manifest's hashes of checkpoint files do not give its checkpoint hash; it was edited, export again"
        )
    source = hash_of_folder(manifest.checkpoint_files, family_named(manifest.family)[entry.component].folder)
    constants = manifest.one_step.notes | (manifest.steps.notes if manifest.steps else {})
    lines += [
        f"its metadata has {name} {notes.get(name)!s:.40}, the manifest {value:.40}; it was edited, export again"
        for name, value in constants.items()
        if notes.get(name) != value
    ]
    if component != entry.component:
        lines.append(f"its metadata names the component {component!r:.40}; export again")
    elif made_from != source:
        lines.append(
            f"it was made from another checkpoint (its files {made_from[:12]}, not {source[:12]}); export again"
        )
    return [Fault(Check.ORIGIN, line) for line in lines]


def surface_faults(entry: ArtifactEntry, given: Arrays, wanted: Arrays) -> list[Fault]:
    """Check the manifest's shapes and dtypes against real inputs (``given``) and outputs (``wanted``)."""
    values = [(spec, given[spec.name]) for spec in entry.inputs]
    values += [(spec, wanted[spec.name]) for spec in entry.outputs]
    return [
        Fault(
            Check.SURFACE,
            f"the manifest says {spec.name} {spec.dtype}{list(spec.shape)}, it is {value.dtype}{list(value.shape)}; "
            "it was edited, export again",
        )
        for spec, value in values
        if (spec.shape, spec.dtype) != (value.shape, str(value.dtype))
    ]


def claim_faults(out: Path, entry: ArtifactEntry, recipe: Recipe, found: Description) -> list[Fault]:
    """Check the manifest's claims about the artifact against the artifact itself and the recipe."""
    scheme, suffix = recipe.schemes[entry.component], suffix_of(TARGETS[recipe.target], recipe.form)
    pairs = (
        ("files", entry.file, f"{layout_of(recipe).file(entry.component)}{suffix}"),
        ("bytes", entry.bytes, bytes_of_artifact(artifact_path(out, entry))),
        ("stored bytes", entry.stored, found.stored),
        ("operations", entry.ops, found.ops),
        ("weights", entry.weights, scheme.weights),
        ("activations", entry.activations, scheme.activations),
    )
    return [
        Fault(Check.CLAIMS, f"the manifest's {name} are {said!s:.60}, not {true!s:.60}; it was edited, export again")
        for name, said, true in pairs
        if said != true
    ]


# Allowed share of kept values beyond the requested share: equal magnitudes are all kept, and biases stay dense.
SPARSITY_SLACK: Final = 0.1


def stored_faults(entry: ArtifactEntry, scheme: QuantScheme, found: Description) -> list[Fault]:
    """Check the stored weights for NaN or Inf that arithmetic might hide, and for other types than the scheme's."""
    faults = [Fault(Check.CONSTANTS, f"NaN or Inf in the stored weight {name}") for name in found.not_finite[:3]]
    return faults + [Fault(Check.STORED, line) for line in _type_faults(entry, scheme, found)]


def _type_faults(entry: ArtifactEntry, scheme: QuantScheme, found: Description) -> list[str]:
    counts = {dtype: 8 * size / _bits(dtype) for dtype, size in found.stored.items()}
    masks = counts.pop("uint1", 0.0)
    asked = {stored_type(weights): weights for weights in scheme.all_weights}
    wanted = sum(counts.get(dtype, 0.0) for dtype in asked)
    share = wanted / (sum(counts.values()) or 1.0)
    # If the scheme also requests float for some weights, floats alone must not satisfy the whole request.
    narrow = {dtype: weights for dtype, weights in asked.items() if not dtype.startswith("float")}
    # All rules may be for modules of other chunks.
    narrow = {} if scheme.rules and chunk_number(entry.component) else narrow
    faults = []
    if share <= 0.5:
        named = " and ".join(scheme.all_weights)
        faults.append(f"{named} was requested, but only {share:.0%} of its weights are stored so")
    elif narrow and not any(counts.get(dtype) for dtype in narrow):
        faults.append(f"{' and '.join(narrow.values())} was requested, but none of its weights is stored so")
    if scheme.sparsity is not None and not wanted <= masks * (1 - scheme.sparsity + SPARSITY_SLACK):
        faults.append(f"a sparsity of {scheme.sparsity:g} was requested, but the weights are not stored so sparsely")
    if entry.activations == "int8_static" and found.int8_inputs is not None and found.int8_inputs <= 0.5:
        faults.append(f"int8 activations were requested, but only {found.int8_inputs:.0%} of the operations take them")
    return faults


def _bits(dtype: str) -> int:
    """Return the bits of one element: ``float16`` → 16, ``uint4`` → 4; 8 for ``bool``."""
    digits = dtype.lstrip(ascii_letters)
    return int(digits) if digits else 8
