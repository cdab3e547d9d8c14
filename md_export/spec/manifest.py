"""``manifest.json``: the contents of an export, how it was made, and a check of its files against their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from md_export.errors import ArtifactError
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, data_name, is_unchanged
from md_export.spec.given import MANIFEST, require_export
from md_export.spec.names import DEFAULT_FAMILY, FAMILY_PATTERN, FamilyName
from md_export.spec.recipe import Recipe
from md_export.spec.sampler import ManySteps, NoiseSchedule, OneStep
from md_export.system.files import is_plain_name, read_limited, sha256_of
from md_export.system.terminal_text import first_control

SCHEMA: Final = 2
_LARGEST_FILE: Final = 16 << 20
_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Drift:
    """Change of the outputs by rewrites that are not exact: rewritten against original torch on the golden cases."""

    unet_snr_db: float
    picture_psnr_db: float


@dataclass(frozen=True)
class AddedLora:
    """A LoRA that was fused into the weights: name and SHA-256 of its file, scale, and the components it changes."""

    name: str
    sha256: str
    scale: float
    components: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``, which describes the artifacts in its folder.

    ``files`` maps the path of every other file of the export (golden cases, tokenizer) to its SHA-256, and
    ``checkpoint_files`` that of every file of the checkpoint; ``checkpoint_sha256`` is computed from these.
    ``steps``: constants for many steps, if the recipe has a sampler; ``one_step`` is then unused.
    ``schedule``: noise schedule for image-to-image, if the export has the VAE encoder.
    ``family``: model family of the checkpoint. ``zeros_for_empty``: unconditional text embeddings are zeros, not those
    of the empty prompt. ``loras``: LoRAs fused into the checkpoint; ``recipe`` does not name them.
    ``styles``: LoRAs that the app chooses by inputs, by their names among the files in ``styles/``.
    """

    __pydantic_config__ = _FORBID

    schema: int
    md_export: str
    target: str
    recipe: Recipe
    checkpoint_sha256: str
    golden_sha256: str
    tools: dict[str, str]
    one_step: OneStep
    artifacts: tuple[ArtifactEntry, ...]
    picture_psnr_db: float | None = None
    drift: Drift | None = None
    files: dict[str, str] = field(default_factory=dict)
    checkpoint_files: dict[str, str] = field(default_factory=dict)
    steps: ManySteps | None = None
    loras: tuple[AddedLora, ...] = ()
    schedule: NoiseSchedule | None = None
    family: Annotated[FamilyName, Field(pattern=FAMILY_PATTERN)] = DEFAULT_FAMILY
    zeros_for_empty: bool = False
    styles: tuple[AddedLora, ...] = ()

    @property
    def stored_prompts(self) -> tuple[str, ...]:
        """Prompts whose text embeddings the export stores, in order; empty if it stores none."""
        return self.recipe.prompts.texts(self.steps) if self.recipe.prompts else ()

    def entry_for(self, component: str) -> ArtifactEntry:
        """Return the component's artifact; raise ArtifactError if the export has none."""
        for entry in self.artifacts:
            if entry.component == component:
                return entry
        known = ", ".join(entry.component for entry in self.artifacts)
        raise ArtifactError(f"the export has no {component!r:.40}, only {known}; export that component too")


_MANIFEST = TypeAdapter(Manifest)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``folder/manifest.json``, with keys in declaration order and one space of indent per level."""
    text = _MANIFEST.dump_json(manifest, indent=2, exclude=_left_out(manifest)).decode()
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def without_defaults(family: FamilyName, steps: ManySteps | None) -> dict[str, bool | set[str]]:
    """Return the fields with default values, which a manifest or an index of golden cases leaves out."""
    found: dict[str, bool | set[str]] = {"family": True} if family == DEFAULT_FAMILY else {}
    return found | ({} if steps is None or steps.embedded else {"steps": {"embedded"}})


def _left_out(manifest: Manifest) -> dict[str, bool | set[str]]:
    later = {name: True for name in ("zeros_for_empty", "styles") if not getattr(manifest, name)}
    return {**without_defaults(manifest.family, manifest.steps), **later}


def manifest_to_dict(manifest: Manifest) -> dict[str, object]:
    """Return the manifest as JSON-ready dicts and lists."""
    plain: dict[str, object] = from_json(_MANIFEST.dump_json(manifest))
    return plain


def read_manifest(folder: Path) -> Manifest:
    """Read and validate ``folder/manifest.json``.

    Raises:
        ArtifactError: missing, unreadable, of another schema, or naming files outside ``folder``.
    """
    require_export(folder)
    path = folder / MANIFEST
    return manifest_from_bytes(read_limited(path, _LARGEST_FILE, ArtifactError, "export again"), path)


def manifest_from_bytes(content: bytes, path: Path) -> Manifest:
    """Validate a manifest's content; ``path`` is for error messages.

    Raises:
        ArtifactError: as :func:`read_manifest`.
    """
    try:
        manifest = _MANIFEST.validate_json(content, strict=True)
    except (ValidationError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a manifest: {first_finding(error)}; export again") from error
    if (control := first_control(from_json(content))) is not None:
        raise ArtifactError(f"{path}: {control} holds a control character; it was edited, export again")
    if manifest.schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {manifest.schema}, this version reads {SCHEMA}; export again")
    _check_recipe(manifest, path)
    _check_entries(manifest, path)
    return manifest


def _check_recipe(manifest: Manifest, path: Path) -> None:
    recipe = manifest.recipe
    if manifest.target != recipe.target:
        raise ArtifactError(
            f"{path} is for {manifest.target!r:.40}, its recipe for {recipe.target!r:.40}; it was edited, export again"
        )
    one_step = manifest.steps is None and recipe.sampler is None
    if not one_step and (manifest.steps is None or not manifest.steps.agrees(recipe.sampler)):
        raise ArtifactError(f"{path} has other steps or guidance than its recipe; it was edited, export again")
    listed = [entry.component for entry in manifest.artifacts]
    if listed != list(recipe.parts):
        raise ArtifactError(
            f"{path} lists {', '.join(listed) or 'no artifact'}, but its recipe has {', '.join(recipe.parts)}; it "
            "was edited, export again"
        )
    if manifest.family.partition(":")[2] != str(recipe.chunks or "") or not set(listed) <= (
        recipe.schemes.keys() & recipe.tolerances.keys()
    ):
        raise ArtifactError(f"{path} and its recipe differ in chunks; it was edited, export again")


def _check_entries(manifest: Manifest, path: Path) -> None:
    for entry in manifest.artifacts:
        if not is_plain_name(entry.file):
            raise ArtifactError(f"{path}: artifact file {entry.file!r:.80} is not a plain name; export again")
        if entry.data not in (None, data_name(entry.file)):
            raise ArtifactError(f"{path}: weights of {entry.file} cannot be in {entry.data!r:.80}; export again")
        if tuple(context.soc for context in entry.contexts) != manifest.recipe.npu:
            raise ArtifactError(f"{path}: {entry.component} was not compiled for the recipe's chips; export again")


def first_finding(error: ValidationError | RecursionError) -> str:
    """Return the first error in JSON with its field: ``one_step.a: Input should be a valid number``."""
    if isinstance(error, RecursionError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def files_beside(folder: Path, entries: Iterable[ArtifactEntry]) -> dict[str, str]:
    """Return the SHA-256 of each file of :func:`paths_beside`."""
    return {name: sha256_of(path) for name, path in paths_beside(folder, entries).items()}


def paths_beside(folder: Path, entries: Iterable[ArtifactEntry]) -> dict[str, Path]:
    """Return every file of an export except its manifest and artifacts, sorted by relative name."""
    known = {MANIFEST, *(name for entry in entries for name in (entry.file, entry.data))}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name.split("/", 1)[0] not in known}


_INDEX = f"{GOLDEN_FOLDER}/index.json"


@dataclass(frozen=True)
class Checked:
    """Result of the check of one export.

    Attributes:
        files: number of files and packages compared with their hash.
        differences: one line for each missing or altered file.
        unlisted: files that the manifest does not list; they were added after the export.
    """

    folder: Path
    files: int
    differences: tuple[str, ...]
    unlisted: tuple[str, ...]


def check_exports(out: Path) -> tuple[Checked, ...]:
    """Check the export in ``out``, or each one in a folder of exports.

    Raises:
        ArtifactError: ``out`` has no export, or a manifest cannot be read.
    """
    folders = [out] if (out / MANIFEST).is_file() else sorted(path.parent for path in out.glob(f"[!.]*/{MANIFEST}"))
    if not folders:
        raise ArtifactError(f"{out} holds no export; name a folder that md-export wrote")
    return tuple(check_export(folder) for folder in folders)


def check_export(folder: Path) -> Checked:
    """Compare every file of one export with its manifest."""
    manifest = read_manifest(folder)
    listed = _listed(manifest, folder)
    differences = [*_altered_artifacts(folder, manifest), *altered_files(folder, manifest)]
    return Checked(folder, len(manifest.artifacts) + len(listed), tuple(differences), unlisted_files(folder, manifest))


def unlisted_files(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return the names of files in ``folder`` that the manifest does not list."""
    listed = _listed(manifest, folder)
    return tuple(name for name in paths_beside(folder, manifest.artifacts) if name not in listed)


def _listed(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Return the hashes of all files beside the artifacts; an older manifest lists only the index of golden cases."""
    for name in manifest.files:
        if not all(is_plain_name(part) for part in name.split("/")):
            raise ArtifactError(f"{folder / MANIFEST} lists the file {name!r:.80}, which lies outside; export again")
    return {_INDEX: manifest.golden_sha256} | manifest.files


def _altered_artifacts(folder: Path, manifest: Manifest) -> Iterator[str]:
    for entry in manifest.artifacts:
        try:
            if not is_unchanged(folder, entry):
                yield f"{entry.file} was altered"
        except ArtifactError as error:
            yield str(error)


def altered_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a line for each file beside the artifacts that is missing or differs from its hash in the manifest."""
    for name, digest in _listed(manifest, folder).items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif sha256_of(folder / name) != digest:
            yield f"{name} was altered"
