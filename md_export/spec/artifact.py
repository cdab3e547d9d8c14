"""One artifact of an export as data, and its files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import ArtifactError
from md_export.spec.tensors import TensorSpec
from md_export.system.files import bytes_of, irregular, sha256_of, sha256_of_text

GOLDEN_FOLDER: Final = "golden"
NPU_FOLDER: Final = "npu"


@dataclass(frozen=True)
class RewriteRecord:
    """How often a rewrite fired in one component; ``exact`` says that it only changes the form."""

    name: str
    fired: int
    exact: bool
    note: str = ""


@dataclass(frozen=True)
class Parity:
    """Worst figures of one artifact over all golden cases, against the golden outputs, in float64.

    ``guidance_snr_db``: SNR of the difference between the two halves of a guided batch; None without guidance.
    """

    snr_db: float
    psnr_db: float
    cosine: float
    max_abs: float
    guidance_snr_db: float | None = None


@dataclass(frozen=True)
class Measured:
    """Wall seconds and peak resident bytes of the worker process that made the artifact."""

    seconds: float
    peak_resident_bytes: int


@dataclass(frozen=True)
class NpuContext:
    """An ONNX artifact compiled for one chip's NPU; :func:`context_path` returns where it lies.

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


def shape_of_input(entries: Iterable[ArtifactEntry], name: str) -> tuple[int, ...] | None:
    """Return the shape of an input of the first artifact that takes it; None if no artifact does."""
    return next((spec.shape for entry in entries for spec in entry.inputs if spec.name == name), None)


def artifact_path(folder: Path, entry: ArtifactEntry) -> Path:
    """Return where the artifact lies.

    Raises:
        ArtifactError: it is not there.
    """
    path = folder / entry.file
    if not path.exists():
        raise ArtifactError(f"{entry.component}: {path} is missing; export again")
    data = path.with_name(data_name(path.name))
    if odd := irregular(path) or (irregular(data) if data.exists() else None):
        raise ArtifactError(f"{entry.component}: {odd} is a pipe, a device or a broken link, no file; export again")
    return path


def context_path(folder: Path, entry: ArtifactEntry, soc: str) -> Path:
    """Return where an artifact's context for a chip lies: ``npu/snapdragon-8-elite/unet.onnx``."""
    return folder / NPU_FOLDER / soc / entry.file


def files_of_context(context: Path) -> tuple[Path, Path]:
    """Return the compiled graph and the NPU's binary beside it, as onnxruntime names them: ``unet_qnn.bin``."""
    return context, context.with_name(f"{context.stem}_qnn.bin")


def sha256_of_artifact(path: Path) -> str:
    """Return the SHA-256 of a file or package, with the ``<name>.data`` file that a large ONNX graph needs."""
    own, data = sha256_of(path), data_of(path)
    return sha256_of_text(own + sha256_of(data)) if data else own


def bytes_of_artifact(path: Path) -> int:
    """Return the size of what :func:`sha256_of_artifact` covers."""
    data = data_of(path)
    return bytes_of(path) + (bytes_of(data) if data else 0)


def data_of(path: Path) -> Path | None:
    """Return the file beside an artifact that holds its weights; None where the artifact holds them."""
    data = path.with_name(data_name(path.name))
    return data if data.is_file() else None


def data_name(file: str) -> str:
    """Return the name of the file that may hold the weights of an artifact called ``file``."""
    return f"{file}.data"


def is_unchanged(folder: Path, entry: ArtifactEntry) -> bool:
    """Whether the artifact's bytes are those that the manifest was written for."""
    path = artifact_path(folder, entry)
    # First the size: hashing a file that somebody made endless would not end.
    return bytes_of_artifact(path) == entry.bytes and sha256_of_artifact(path) == entry.sha256
