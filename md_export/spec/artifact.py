"""Records about one artifact of an export, and the paths and hashes of its files."""

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
    """Number of times that a rewrite fired in one component; ``exact``: it does not change the computed function."""

    name: str
    fired: int
    exact: bool
    note: str = ""


@dataclass(frozen=True)
class Parity:
    """Worst metrics of one artifact over all golden cases, compared with the golden outputs in float64.

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
    """An ONNX artifact compiled for one chip's NPU; :func:`context_path` returns its path.

    Attributes:
        soc: name in SOCS.
        bytes: size of the context and its binary together.
        nodes: number of nodes of the graph; the NPU computes all of them.
        seconds, peak_bytes: time and peak memory of compiling.
    """

    soc: str
    bytes: int
    nodes: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class ArtifactEntry:
    """One artifact.

    ``stored`` maps dtype names to bytes of weights, as counted in the file. ``rewritten_snr_db`` compares the rewritten
    torch module, before lowering, with one golden case: the first one available when the artifact was made, possibly
    of another checkpoint with the same component; None if the module is the checkpoint's own. ``data`` is a file beside
    the artifact with its weights, if they are too large for the artifact's file; ``sha256`` and ``bytes`` then cover
    both files. ``contexts``: compiled forms for NPUs.
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
    """Return the path of the artifact.

    Raises:
        ArtifactError: it is missing, or not a regular file or folder.
    """
    path = folder / entry.file
    if not path.exists():
        raise ArtifactError(f"{entry.component}: {path} is missing; export again")
    data = path.with_name(data_name(path.name))
    if odd := irregular(path) or (irregular(data) if data.exists() else None):
        raise ArtifactError(f"{entry.component}: {odd} is a pipe, a device or a broken link, not a file; export again")
    return path


def context_path(folder: Path, entry: ArtifactEntry, soc: str) -> Path:
    """Return the path of an artifact's NPU context for a chip: ``npu/snapdragon-8-elite/unet.onnx``."""
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
    """Return the file beside an artifact that holds its weights; None if the artifact contains them."""
    data = path.with_name(data_name(path.name))
    return data if data.is_file() else None


def data_name(file: str) -> str:
    """Return the name of the file that may hold the weights of an artifact called ``file``."""
    return f"{file}.data"


def is_unchanged(folder: Path, entry: ArtifactEntry) -> bool:
    """Return whether the artifact has the size and hash that the manifest lists."""
    path = artifact_path(folder, entry)
    # Compare the size first: hashing an endless file would never return.
    return bytes_of_artifact(path) == entry.bytes and sha256_of_artifact(path) == entry.sha256
