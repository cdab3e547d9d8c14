"""What an export leaves behind, as data: ``manifest.json`` and the artifacts it lists."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from md_export.errors import ArtifactError
from md_export.files import bytes_of, is_plain_name, sha256_of, sha256_of_text
from md_export.recipe import Recipe
from md_export.sampler import Ddim
from md_export.tensors import TensorSpec
from md_export.visible import first_control

MANIFEST: Final = "manifest.json"
# Instead, of a folder that holds the functions of several exports.
JOIN: Final = "join.json"
GOLDEN_FOLDER: Final = "golden"
NPU_FOLDER: Final = "npu"
SCHEMA: Final = 1
_LARGEST_FILE: Final = 16 << 20
_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class RewriteRecord:
    """How often a rewrite fired in one component; ``exact`` says that it only changes the form."""

    name: str
    fired: int
    exact: bool
    note: str = ""


@dataclass(frozen=True)
class Drift:
    """What rewrites that change the function did to the pictures, torch against torch on the golden cases."""

    unet_snr_db: float
    picture_psnr_db: float


@dataclass(frozen=True)
class Parity:
    """Worst figures of one artifact over all golden cases, against the golden outputs, in float64."""

    snr_db: float
    psnr_db: float
    cosine: float
    max_abs: float


@dataclass(frozen=True)
class Measured:
    """Of the worker process that made the artifact: wall seconds and peak resident bytes."""

    seconds: float
    peak_resident_bytes: int


@dataclass(frozen=True)
class NpuContext:
    """An ONNX artifact compiled for one chip's NPU; where it lies is :func:`context_path`'s to say.

    Attributes:
        soc: name in SOCS.
        bytes: of context and binary.
        nodes: of the graph, all of which the NPU computes.
        seconds, peak_bytes: of compiling.
    """

    soc: str
    bytes: int
    nodes: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class ArtifactEntry:
    """One artifact; ``stored`` maps dtype names to bytes of weights found in the file itself.

    ``rewritten_snr_db`` is of the rewritten torch module against a golden case, before it was lowered: the first of
    those at hand when the artifact was made, which another checkpoint with the same component may share. ``data`` is
    the file beside it that holds its weights, where they are too large for it; hash and bytes are of both.
    ``contexts``: what it was compiled to for NPUs.
    """

    component: str
    file: str
    sha256: str
    bytes: int
    weights: str
    activations: str
    stored: dict[str, int]
    ops: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    rewrites: tuple[RewriteRecord, ...]
    measured: Measured
    parity: Parity | None = None
    rewritten_snr_db: float | None = None
    data: str | None = None
    contexts: tuple[NpuContext, ...] = ()


@dataclass(frozen=True)
class OneStep:
    """What an app needs to run the artifacts: x0 = a·x_T + b·output at ``timestep``; decode x0 / scaling_factor."""

    timestep: int
    a: float
    b: float
    scaling_factor: float
    prediction_type: str


@dataclass(frozen=True)
class AddedLora:
    """A LoRA that was fused into the weights: name and SHA-256 of its file, its scale, and what it changes."""

    name: str
    sha256: str
    scale: float
    components: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``: everything that is known about the artifacts beside it.

    ``files`` maps the path of every other file of the export (golden cases, tokenizer) to its SHA-256, and
    ``checkpoint_files`` that of every file of the checkpoint, from which ``checkpoint_sha256`` follows.
    ``ddim``: how to take many steps, where the recipe asks for them; ``one_step`` is not for such artifacts.
    ``loras``: what was added to the checkpoint; ``recipe`` is of the checkpoint with them, and does not name them.
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
    ddim: Ddim | None = None
    loras: tuple[AddedLora, ...] = ()

    def entry_for(self, component: str) -> ArtifactEntry:
        """The component's artifact; ArtifactError where the export has none."""
        for entry in self.artifacts:
            if entry.component == component:
                return entry
        known = ", ".join(entry.component for entry in self.artifacts)
        raise ArtifactError(f"the export has no {component!r:.40}, only {known}; export that component too")


_MANIFEST = TypeAdapter(Manifest)
_ENTRY = TypeAdapter(ArtifactEntry)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``folder/manifest.json``, keys in declaration order, one indent a level."""
    text = _MANIFEST.dump_json(manifest, indent=2).decode()
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def manifest_to_dict(manifest: Manifest) -> dict[str, Any]:
    """Plain JSON-ready form."""
    plain: dict[str, Any] = json.loads(_MANIFEST.dump_json(manifest))
    return plain


def entry_to_dict(entry: ArtifactEntry) -> dict[str, Any]:
    """Plain JSON-ready form of one entry; :func:`entry_from_dict` reads it back."""
    plain: dict[str, Any] = json.loads(_ENTRY.dump_json(entry))
    return plain


def entry_from_dict(values: dict[str, Any]) -> ArtifactEntry:
    """Read what :func:`entry_to_dict` wrote."""
    return _ENTRY.validate_json(json.dumps(values), strict=True)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate ``folder/manifest.json``.

    Raises:
        ArtifactError: missing, unreadable, of another schema, or naming files outside ``folder``.
    """
    path = folder / MANIFEST
    if not path.is_file() and (folder / JOIN).is_file():
        raise ArtifactError(f"{folder} holds functions of several exports; take one out with: md-export split {folder}")
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MANIFEST}; point at a folder that md-export wrote")
    if path.stat().st_size > _LARGEST_FILE:
        raise ArtifactError(f"{path} is larger than {_LARGEST_FILE} bytes; export again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; export again") from error
    return manifest_from_bytes(content, path)


def manifest_from_bytes(content: bytes, path: Path) -> Manifest:
    """Validate a manifest's content; ``path`` stands in error messages.

    Raises:
        ArtifactError: as :func:`read_manifest`.
    """
    try:
        manifest = _MANIFEST.validate_json(content, strict=True)
    except (ValidationError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a manifest: {first_finding(error)}; export again") from error
    if (control := first_control(json.loads(content))) is not None:
        raise ArtifactError(f"{path}: {control} holds a control character; it was edited, export again")
    if manifest.schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {manifest.schema}, this version reads {SCHEMA}; export again")
    if manifest.target != manifest.recipe.target:
        raise ArtifactError(
            f"{path} is of {manifest.target!r:.40}, its recipe of {manifest.recipe.target!r:.40}; it was edited, "
            "export again"
        )
    if (manifest.ddim is None) != (manifest.recipe.sampler is None) or (
        manifest.ddim is not None and not manifest.ddim.agrees(manifest.recipe.sampler)
    ):
        raise ArtifactError(f"{path} has other steps or guidance than its recipe; it was edited, export again")
    listed = [entry.component for entry in manifest.artifacts]
    if listed != list(manifest.recipe.components):
        raise ArtifactError(
            f"{path} lists {', '.join(listed) or 'no artifact'}, but its recipe has "
            f"{', '.join(manifest.recipe.components)}; it was edited, export again"
        )
    for entry in manifest.artifacts:
        if not is_plain_name(entry.file):
            raise ArtifactError(f"{path}: artifact file {entry.file!r:.80} is not a plain name; export again")
        if entry.data not in (None, _data_name(entry.file)):
            raise ArtifactError(f"{path}: weights of {entry.file} cannot lie in {entry.data!r:.80}; export again")
        if tuple(context.soc for context in entry.contexts) != manifest.recipe.npu:
            raise ArtifactError(f"{path}: {entry.component} was not compiled for the recipe's chips; export again")
    return manifest


def first_finding(error: ValidationError | RecursionError) -> str:
    """What makes JSON unfit, and in which field: ``one_step.a: Input should be a valid number``."""
    if isinstance(error, RecursionError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def artifact_path(folder: Path, entry: ArtifactEntry) -> Path:
    """Where the artifact lies.

    Raises:
        ArtifactError: it is not there.
    """
    path = folder / entry.file
    if not path.exists():
        raise ArtifactError(f"{entry.component}: {path} is missing; export again")
    return path


def context_path(folder: Path, entry: ArtifactEntry, soc: str) -> Path:
    """Where the context lies that an artifact was compiled to for a chip: ``npu/snapdragon-8-elite/unet.onnx``."""
    return folder / NPU_FOLDER / soc / entry.file


def files_of_context(context: Path) -> tuple[Path, Path]:
    """The compiled graph and the NPU's binary beside it, as onnxruntime calls it: ``unet.onnx``, ``unet_qnn.bin``."""
    return context, context.with_name(f"{context.stem}_qnn.bin")


def sha256_of_artifact(path: Path) -> str:
    """SHA-256 of a file or package, with the ``<name>.data`` file beside it that a large ONNX graph needs."""
    own, data = sha256_of(path), data_of(path)
    return sha256_of_text(own + sha256_of(data)) if data else own


def bytes_of_artifact(path: Path) -> int:
    """Size of what :func:`sha256_of_artifact` covers."""
    data = data_of(path)
    return bytes_of(path) + (bytes_of(data) if data else 0)


def data_of(path: Path) -> Path | None:
    """The file beside an artifact that holds its weights; None where it holds them itself."""
    data = path.with_name(_data_name(path.name))
    return data if data.is_file() else None


def _data_name(file: str) -> str:
    return f"{file}.data"


def files_beside(folder: Path, entries: Iterable[ArtifactEntry]) -> dict[str, str]:
    """SHA-256 of each of :func:`paths_beside`."""
    return {name: sha256_of(path) for name, path in paths_beside(folder, entries).items()}


def paths_beside(folder: Path, entries: Iterable[ArtifactEntry]) -> dict[str, Path]:
    """Every file of an export that is neither its manifest nor of an artifact, by its name there, sorted."""
    known = {MANIFEST, *(name for entry in entries for name in (entry.file, entry.data))}
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name.split("/", 1)[0] not in known}


def is_unchanged(folder: Path, entry: ArtifactEntry) -> bool:
    """Whether the artifact's bytes are those that the manifest was written for."""
    return sha256_of_artifact(artifact_path(folder, entry)) == entry.sha256
