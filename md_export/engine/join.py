"""Join Core ML exports of several sizes or styles into one with a function for each, and split it again.

    OUT/join.json                  names of the functions, the default one first
    OUT/unet.mlpackage, …          one package per component, with its weights stored once
    OUT/size_256/                  all other files of the export of that size: manifest, golden cases, …
    OUT/crayon/                    the same for the export with the LoRA crayon.safetensors, computed beside the weights

A function that is split off is an ordinary export and is verified like one.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from md_export.checkpoint.files import without_loras
from md_export.errors import ArtifactError, ConversionError, ParityError, UsageError
from md_export.parity.judge import verify
from md_export.parity.verdict import Verdict, with_parity
from md_export.spec.artifact import ArtifactEntry, artifact_path, bytes_of_artifact, sha256_of_artifact
from md_export.spec.given import JOIN
from md_export.spec.loras import label
from md_export.spec.manifest import Checked, Manifest, check_export, first_finding, read_manifest, write_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.variant import size_in_words
from md_export.system.files import bytes_of, is_plain_name, read_regular, staging
from md_export.system.isolation import isolated
from md_export.system.workspace import scratch_folder
from md_export.targets.contract import Description

Progress = Callable[[str], None]
_LARGEST_FILE: Final = 1 << 16
_OLDEST: Final = "iOS18"


@dataclass(frozen=True)
class Functions:
    """Content of ``join.json``; the default function comes first."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    schema: Literal[1]
    functions: tuple[str, ...]


@dataclass(frozen=True)
class Shared:
    """Size of one component in bytes: ``apart`` for the separate packages together, ``joined`` for the joined one."""

    component: str
    apart: int
    joined: int


_FUNCTIONS: Final = TypeAdapter(Functions)


def join(exports: Sequence[Path], out: Path, progress: Progress = print) -> tuple[tuple[Shared, ...], list[Verdict]]:
    """Join verified exports that differ in picture size or LoRAs; ``out`` appears after every function is verified.

    Raises:
        UsageError: the exports are not Core ML exports of one checkpoint and recipe in several sizes or styles.
        ParityError: a function does not compute what its export computed.
    """
    manifests = {path: read_manifest(path) for path in exports}
    named = _named(manifests)
    with staging(out) as folder:
        shared = tuple(
            _join(name, {function: (path, manifests[path]) for function, path in named.items()}, folder, progress)
            for name in (entry.component for entry in next(iter(manifests.values())).artifacts)
        )
        results = [_seal(folder, name, path, manifests[path], progress) for name, path in named.items()]
        text = _FUNCTIONS.dump_json(Functions(1, tuple(named)), indent=2).decode()
        (folder / JOIN).write_text(text + "\n", encoding="utf-8")
    return shared, results


def split(out: Path, function: str, folder: Path) -> Manifest:
    """Write one function of a joined export to ``folder`` as an ordinary export; ``folder`` must not exist.

    Raises:
        ArtifactError: ``out`` is not a joined export, or has no such function.
    """
    known = read_functions(out)
    if function not in known:
        raise ArtifactError(f"{out} has no function {function!r:.80}; it has {', '.join(known)}")
    with staging(folder) as made:
        shutil.copytree(out / function, made, dirs_exist_ok=True)
        manifest = read_manifest(made)
        for entry in manifest.artifacts:
            _take(artifact_path(out, entry), function, made / entry.file)
    return manifest


def verify_functions(out: Path, progress: Progress = lambda _: None) -> dict[str, Verdict]:
    """Verify each function of a joined export on the golden cases of its size, and return the verdicts by function.

    Raises:
        ArtifactError: ``out`` is not a joined export, or cannot be read.
    """
    results = {}
    with scratch_folder() as scratch:
        for function in read_functions(out):
            progress(f"function {function}")
            folder = scratch / function
            split(out, function, folder)
            results[function] = verify(folder, progress=progress)
            shutil.rmtree(folder)
    return results


def check_functions(out: Path) -> tuple[Checked, ...]:
    """Split off each function of a joined export and compare it with the hashes in its manifest.

    Raises:
        ArtifactError: ``out`` is not a joined export, or cannot be read.
    """
    found = []
    for function in read_functions(out):
        with scratch_folder() as scratch:
            split(out, function, scratch / function)
            found.append(dataclasses.replace(check_export(scratch / function), folder=out / function))
    return tuple(found)


def read_functions(out: Path) -> tuple[str, ...]:
    """Return the names of the functions of a joined export, the default one first.

    Raises:
        ArtifactError: ``out`` is not a joined export, or its ``join.json`` is invalid.
    """
    path = out / JOIN
    try:
        content = read_regular(path, _LARGEST_FILE)
        names = _FUNCTIONS.validate_json(content or b"", strict=True).functions
    except OSError as error:
        raise ArtifactError(f"{out} is not a joined export ({error.strerror}); make one: md-export join") from error
    except (ValidationError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {first_finding(error)}; join again") from error
    if not names or not all(is_plain_name(name) for name in names):
        raise ArtifactError(f"{path} lists no function, or one with an invalid name; join again")
    return names


def _named(manifests: Mapping[Path, Manifest]) -> dict[str, Path]:
    """Return the exports by function name, in the given order.

    Raises:
        UsageError: the exports cannot be joined.
    """
    first, *others = manifests.values()
    if not others or any(manifest.target != "coreml" for manifest in manifests.values()):
        raise UsageError("join needs two or more Core ML exports; other targets have one file per size (docs/sizes.md)")
    if any(manifest.recipe.layout for manifest in manifests.values()):
        raise UsageError("Apple's Swift package supports one function per package; join exports without --layout")
    if any(manifest.recipe.chunks for manifest in manifests.values()):
        raise UsageError("join supports one package per component; join exports without --chunks")
    styled = any(manifest.checkpoint_sha256 != first.checkpoint_sha256 for manifest in others)
    for other in others:
        based = without_loras(other.checkpoint_files) == without_loras(first.checkpoint_files)
        if other.checkpoint_sha256 != first.checkpoint_sha256 and (other.loras == first.loras or not based):
            raise UsageError("the exports are from different checkpoints, so they share no weights; join those of one")
        if fields := _differences(first.recipe, other.recipe):
            raise UsageError(f"the exports' recipes differ in {', '.join(fields)}; only size and LoRAs may differ")
    if styled and any(manifest.loras and not manifest.recipe.unfused for manifest in manifests.values()):
        raise UsageError("a LoRA is fused into the weights, so they cannot be shared; export it with --unfused")
    sized = not styled or len({manifest.recipe.size for manifest in manifests.values()}) > 1
    named = {}
    for path, manifest in manifests.items():
        parts = [f"size_{_size(path, manifest)}"] if sized else []
        named["_".join([*parts, _style(manifest)] if styled else parts)] = path
    if len(named) < len(manifests):
        raise UsageError("two of the exports have the same size and LoRAs; name one export for each")
    return named


def _style(manifest: Manifest) -> str:
    """Return the name of the LoRAs of an export: ``crayon``, or ``crayon_0_5`` at the scale 0.5."""
    texts = [lora.name if lora.scale == 1 else f"{lora.name}:{lora.scale:g}" for lora in manifest.loras]
    return re.sub(r"[^A-Za-z0-9]+", "_", label(texts)).strip("_") or "base"


def _differences(first: Recipe, other: Recipe) -> list[str]:
    names = [field.name for field in dataclasses.fields(Recipe) if field.name not in ("name", "size", "unfused")]
    return [name for name in names if getattr(first.fused, name) != getattr(other.fused, name)]


def _size(path: Path, manifest: Manifest) -> str:
    """Return the size of the export's pictures in words; raise UsageError if the export does not define it."""
    pictures = [entry.outputs[0].shape for entry in manifest.artifacts if entry.component == "vae_decoder"]
    size = manifest.recipe.size or next(((shape[-1], shape[-2]) for shape in pictures), None)
    if size is None:
        raise UsageError(f"{path} does not define the size of its pictures; export it with --size, or with its decoder")
    return size_in_words(size)


def _join(component: str, named: Mapping[str, tuple[Path, Manifest]], folder: Path, progress: Progress) -> Shared:
    packages = {name: artifact_path(path, made.entry_for(component)) for name, (path, made) in named.items()}
    joined = folder / next(iter(packages.values())).name
    progress(f"join {joined.name}: {', '.join(named)}")
    isolated(join_packages, ConversionError, f"joining {joined.name}")(Joining(packages, joined))
    return Shared(component, sum(map(bytes_of, packages.values())), bytes_of(joined))


def _seal(folder: Path, function: str, export: Path, manifest: Manifest, progress: Progress) -> Verdict:
    """Verify one function, write its folder without the packages, and return the verdict."""
    packages = {entry.file for entry in manifest.artifacts}
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        made = Path(scratch) / function
        shutil.copytree(export, made, ignore=lambda _, names: packages & set(names))
        entries = tuple(_described(folder, entry, function, made) for entry in manifest.artifacts)
        recipe = dataclasses.replace(manifest.recipe, deployment_target=_OLDEST)
        manifest = dataclasses.replace(manifest, recipe=recipe, artifacts=entries)
        write_manifest(manifest, made)
        result = verify(made, progress=progress)
        if not result.passed:
            raise ParityError(f"function {function} does not compute what {export} did: {'; '.join(result.failures)}")
        write_manifest(with_parity(manifest, result), made)
        shutil.copytree(made, folder / function, ignore=lambda _, names: packages & set(names))
    return result


def _described(folder: Path, entry: ArtifactEntry, function: str, made: Path) -> ArtifactEntry:
    path = made / entry.file
    found = _take(folder / entry.file, function, path)
    return dataclasses.replace(
        entry, sha256=sha256_of_artifact(path), bytes=bytes_of_artifact(path), stored=found.stored, ops=found.ops
    )


def _take(package: Path, function: str, path: Path) -> Description:
    """Write one function as a separate package, in a child process, and return its description."""
    what = f"{package.name}: function {function}"
    return isolated(take_function, ArtifactError, what)(Taking(package, function, path))


@dataclass(frozen=True)
class Joining:
    """Input of :func:`join_packages`: Core ML packages by their future function names, and the path to write."""

    packages: Mapping[str, Path]
    path: Path


def join_packages(job: Joining) -> None:
    """Join several Core ML packages into one, in the calling process."""
    from md_export.targets.coreml import save

    with tempfile.TemporaryDirectory(prefix=".", dir=job.path.parent) as scratch:
        save.join(job.packages, job.path, Path(scratch))


@dataclass(frozen=True)
class Taking:
    """Input of :func:`take_function`: a Core ML package, one of its functions, and the path to write."""

    package: Path
    function: str
    path: Path


def take_function(job: Taking) -> Description:
    """Write one function as a separate package, in the calling process, and return its description."""
    from md_export.targets.coreml import describe, save

    save.split(job.package, job.function, job.path)
    return describe.describe(job.path)
