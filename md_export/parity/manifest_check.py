"""Whether exports are still what their manifests say, byte by byte; needs nothing but the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from md_export.errors import ArtifactError
from md_export.spec.artifact import GOLDEN_FOLDER, is_unchanged
from md_export.spec.manifest import MANIFEST, Manifest, paths_beside, read_manifest
from md_export.system.files import is_plain_name, sha256_of

_INDEX = f"{GOLDEN_FOLDER}/index.json"


@dataclass(frozen=True)
class Checked:
    """One export.

    Attributes:
        files: how many files, and packages, were held against their hash.
        differences: what is missing or altered, one line each.
        unlisted: files that the manifest does not know; they lie there since.
    """

    folder: Path
    files: int
    differences: tuple[str, ...]
    unlisted: tuple[str, ...]


def check_exports(out: Path) -> tuple[Checked, ...]:
    """Check the export in ``out``, or each one in a folder of exports.

    Raises:
        ArtifactError: there is none, or a manifest cannot be read.
    """
    folders = [out] if (out / MANIFEST).is_file() else sorted(path.parent for path in out.glob(f"[!.]*/{MANIFEST}"))
    if not folders:
        raise ArtifactError(f"{out} holds no export; point at a folder that md-export wrote")
    return tuple(check_export(folder) for folder in folders)


def check_export(folder: Path) -> Checked:
    """Hold every file of one export against its manifest."""
    manifest = read_manifest(folder)
    listed = _listed(manifest, folder)
    differences = [*_altered_artifacts(folder, manifest), *_altered_files(folder, listed)]
    return Checked(
        folder, len(manifest.artifacts) + len(listed), tuple(differences), _unlisted(folder, manifest, listed)
    )


def _listed(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Hashes of all files beside the artifacts; an older manifest knows the index of golden cases only."""
    for name in manifest.files:
        if not all(is_plain_name(part) for part in name.split("/")):
            raise ArtifactError(f"{folder / MANIFEST} lists the file {name!r:.80}, which lies outside; export again")
    return {_INDEX: manifest.golden_sha256} | manifest.files


def _altered_artifacts(folder: Path, manifest: Manifest) -> Iterator[str]:
    for entry in manifest.artifacts:
        if not (folder / entry.file).exists():
            yield f"{entry.file} is missing"
        elif not is_unchanged(folder, entry):
            yield f"{entry.file} was altered"


def _altered_files(folder: Path, listed: dict[str, str]) -> Iterator[str]:
    for name, digest in listed.items():
        if not (folder / name).is_file():
            yield f"{name} is missing"
        elif sha256_of(folder / name) != digest:
            yield f"{name} was altered"


def _unlisted(folder: Path, manifest: Manifest, listed: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name in paths_beside(folder, manifest.artifacts) if name not in listed)
