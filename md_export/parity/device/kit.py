"""Write a kit: a folder of files to run an export on a phone.

    kit.json                          tensors of each component and case, SHA-256 of the export's manifest
    files/unet.tflite                 artifacts
    inputs/unet/000/sample.bin        golden inputs: raw values, little-endian, last axis fastest
    golden/unet/000/out_sample.bin    golden outputs in the same form
    run-android.sh, …, README.md      programs for the target, and how to use them

Every program of a kit writes the same folder, which :mod:`md_export.parity.device.results` reads.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from md_export.errors import ArtifactError, UsageError
from md_export.parity.golden.surface import each_call
from md_export.parity.opened_export import open_export
from md_export.parity.subject import Subject
from md_export.spec.artifact import data_of, is_unchanged
from md_export.spec.given import MANIFEST
from md_export.spec.tensors import Array, Arrays
from md_export.system.files import copy_file, require_space, sha256_of, sha256_of_bytes, staging

KIT: Final = "kit.json"
_SCRIPTS: Final = Path(__file__).with_name("scripts")
# Programs of each target; README-<target>.md becomes README.md.
PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "tflite": ("run-android.sh", "android.py", "run_here.py"),
    "onnx": ("run_here.py",),
    "coreml": ("main.swift",),
}
# Names become parts of paths on other systems and words of a shell there.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class KitTensor:
    """One tensor of a kit; ``file`` is relative to the kit and has the values of :func:`raw_bytes`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    sha256: str


@dataclass(frozen=True)
class KitCase:
    """One call of a component: folder name, golden case and timestep in words, and tensors."""

    name: str
    label: str
    inputs: tuple[KitTensor, ...]
    outputs: tuple[KitTensor, ...]


@dataclass(frozen=True)
class KitComponent:
    """One artifact, ``file`` in the folder ``files``, and its cases. Tensors are in the order of a .tflite file."""

    component: str
    file: str
    cases: tuple[KitCase, ...]


@dataclass(frozen=True)
class Kit:
    """Content of ``kit.json``; ``golden_cases``: number of golden cases, counted from the export's first."""

    schema: int
    target: str
    recipe: str
    manifest_sha256: str
    golden_cases: int
    components: tuple[KitComponent, ...]


def write_kit(
    out: Path, folder: Path, cases: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> Kit:
    """Write a kit for the export in ``out`` to ``folder``, which must not exist; ``cases``: golden cases, default all.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing or altered.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        OutputError: the folder exists or cannot be written.
        UsageError: kits do not support the target.
    """
    export = open_export(out)
    manifest, golden = export.manifest, export.golden.cases[:cases]
    programs = PROGRAMS.get(manifest.target)
    if programs is None:
        raise UsageError(f"{out} is an export to {manifest.target}; kits run {', '.join(PROGRAMS)}: export to one")
    require_space(folder, sum(entry.bytes for entry in manifest.artifacts))
    with staging(folder) as made:
        components = []
        for entry in manifest.artifacts:
            progress(f"kit: {entry.component} with {len(golden)} golden cases")
            components.append(_write_component(Subject(export, entry, golden), made))
        digest = sha256_of(out / MANIFEST)
        kit = Kit(1, manifest.target, manifest.recipe.name, digest, len(golden), tuple(components))
        (made / KIT).write_text(TypeAdapter(Kit).dump_json(kit, indent=1).decode() + "\n", encoding="utf-8")
        for name in programs:
            shutil.copyfile(_SCRIPTS / name, made / name)
            (made / name).chmod(0o755)
        shutil.copyfile(_SCRIPTS / f"README-{manifest.target}.md", made / "README.md")
    return kit


def case_name(number: int) -> str:
    """Return the name of a case's folder: ``000``, in the order of :func:`each_call`."""
    return f"{number:03d}"


def raw_bytes(value: Array) -> bytes:
    """Return a tensor's values as raw bytes, little-endian, last axis fastest."""
    return value.astype(value.dtype.newbyteorder("<")).tobytes()


def _write_component(subject: Subject, made: Path) -> KitComponent:
    entry = subject.entry
    if not is_unchanged(subject.export.out, entry):
        raise ArtifactError(f"{subject.path} was altered since the export; export again")
    _copy_artifact(subject.path, made / "files" / _checked(entry.file))
    order = _order_of(subject)
    cases = []
    calls = zip(each_call(entry.component, subject.cases), subject.inputs(), subject.wanted(), strict=True)
    for number, (call, inputs, outputs) in enumerate(calls):
        name = case_name(number)
        given = _write_tensors(made, Path("inputs", entry.component, name), inputs, order[0])
        wanted = _write_tensors(made, Path("golden", entry.component, name), outputs, order[1])
        cases.append(KitCase(name, call.label, given, wanted))
    return KitComponent(entry.component, entry.file, tuple(cases))


def _copy_artifact(path: Path, copy: Path) -> None:
    copy.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, copy)
        return
    for source in filter(None, (path, data_of(path))):
        copy_file(source, copy.with_name(source.name))


def _order_of(subject: Subject) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of inputs and outputs; for .tflite in the order of the file, which LiteRT's tools use."""
    if subject.export.manifest.target == "tflite":
        from md_export.targets.tflite.graph import surface  # other targets do without its libraries

        return surface(subject.path)
    return [spec.name for spec in subject.entry.inputs], [spec.name for spec in subject.entry.outputs]


def _write_tensors(made: Path, folder: Path, values: Arrays, order: Sequence[str]) -> tuple[KitTensor, ...]:
    if set(order) != set(values):
        raise ArtifactError(f"the artifact has {', '.join(order)}, the manifest {', '.join(values)}; export again")
    (made / folder).mkdir(parents=True)
    tensors = []
    for name in order:
        value, file = values[name], folder / f"{_checked(name)}.bin"
        content = raw_bytes(value)
        (made / file).write_bytes(content)
        tensors.append(KitTensor(name, value.shape, str(value.dtype), file.as_posix(), sha256_of_bytes(content)))
    return tuple(tensors)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ArtifactError(f"{name!r:.80} cannot be the name of a file on a phone; export again")
    return name
