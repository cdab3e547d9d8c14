"""Inputs of a build: plan them, and turn checkpoints, golden cases and LoRAs into entries of a store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter
from pydantic_core import from_json

from md_export.engine.cache import SCHEMA, Entry, StoredFile
from md_export.engine.costs import Measured
from md_export.engine.keys import FileHashes, files_in, key_of, maker
from md_export.engine.plan import MODEL_MODULES, PLAN, Inputs, Plan
from md_export.engine.request import BuildRequest, lora_files
from md_export.errors import ArtifactError, ConversionError
from md_export.spec.loras import files_of_lora
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.scheme import QuantScheme
from md_export.system.files import write_whole
from md_export.system.isolation import isolated
from md_export.targets import TARGETS, optional, tools_of

# All paths that are read when a checkpoint is opened and exported; a test compares them with the files opened.
READ: Final = (
    "sibling.json",
    "loras.json",
    "loras",
    "model_index.json",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "unet",
    "transformer",
    "vae",
    "scheduler",
    "golden",
)


# Folder of a cache with the hashes of files that were read.
_SEEN: Final = "seen"


@dataclass(frozen=True)
class PlanRequest:
    """Input of :func:`make_plan`, for a worker process.

    Attributes:
        optional: each recipe's ``optional_schemes`` and ``optional_tolerances``, which its serialized form omits.
        seen: as in :class:`md_export.engine.plan.Inputs`.
    """

    recipes: tuple[Recipe, ...]
    optional: tuple[tuple[dict[str, QuantScheme], dict[str, Tolerance]], ...]
    checkpoint: Path
    golden: Path | None
    seen: Path


_REQUEST: Final = TypeAdapter(PlanRequest)


def planned(request: BuildRequest) -> Plan:
    """Return the plan for a request, with costs measured in earlier builds where they are known.

    Raises:
        MdExportError: a recipe cannot be carried out here, or the checkpoint or the golden cases cannot be read.
    """
    for recipe in request.recipes:
        TARGETS[recipe.target].require()
    asked = PlanRequest(
        request.recipes,
        tuple((recipe.optional_schemes, recipe.optional_tolerances) for recipe in request.recipes),
        request.checkpoint.resolve(),
        request.golden and request.golden.resolve(),
        (request.cache / _SEEN).absolute(),
    )
    content = {
        "request": _REQUEST.dump_json(asked, exclude={"seen"}).decode(),
        "loras": [str(file.resolve()) for file in lora_files(request.recipes).values()],
        "maker": maker(),
        "tools": [tools_of(recipe.target) for recipe in request.recipes] + [optional()],
        "files": _read_by(request, FileHashes(request.cache / _SEEN)),
    }
    memory = request.cache / "plans" / f"{key_of(content)}.json"
    try:
        plan = PLAN.validate_json(memory.read_bytes(), strict=True)
    except (OSError, ValueError):
        plan = isolated(make_plan, ConversionError, "planning", preload=MODEL_MODULES)(asked)
        write_whole(memory, PLAN.dump_json(plan), keep_going=True)
    exports = plan.exports if request.only is None else tuple(replace(one, name=request.only) for one in plan.exports)
    measured = Measured(request.cache / "measured")
    return replace(
        plan,
        exports=exports,
        steps=tuple(replace(one, cost=measured.cost(one.cost_key, one.cost)) for one in plan.steps),
    )


def make_plan(request: PlanRequest) -> Plan:
    """Make the plan; runs in a worker process, the only one that imports the modules for reading checkpoints."""
    from md_export.engine.planning import plan

    pairs = zip(request.recipes, request.optional, strict=True)
    recipes = [
        replace(recipe, optional_schemes=schemes, optional_tolerances=tolerances)
        for recipe, (schemes, tolerances) in pairs
    ]
    return plan(recipes, request.checkpoint, request.golden, request.seen)


def inputs_of(request: BuildRequest) -> Inputs:
    """Return the paths of the steps' inputs on this machine."""
    loras = {name: file.resolve() for name, file in lora_files(request.recipes).items()}
    golden = request.golden and request.golden.resolve()
    return Inputs(request.checkpoint.resolve(), golden, loras, (request.cache / _SEEN).absolute())


def _read_by(request: BuildRequest, hashes: FileHashes) -> list[dict[str, str | None]]:
    """Return the hashes of all files that the plan depends on, one mapping per folder."""
    roots: list[tuple[Path, tuple[str, ...]]] = [
        (root, READ) for root in (request.checkpoint, *parents(request.checkpoint)) if root.is_dir()
    ]
    if request.golden is not None and request.golden.is_dir():
        roots.append((request.golden, ("index.json",)))
    roots += [files_of_lora(file) for file in lora_files(request.recipes).values()]
    return [hashes.hashes(root.resolve(), files_in(root, within)) for root, within in roots]


def parents(checkpoint: Path) -> Iterator[Path]:
    """Yield the other folders that a checkpoint takes files from.

    Unreadable ``loras.json`` or ``sibling.json`` files are ignored here; the worker reports them as errors.
    """
    base = _named(checkpoint / "loras.json", "base")
    parent = _named((base or checkpoint) / "sibling.json", "parent")
    yield from (folder for folder in (base, parent) if folder is not None)


def _named(note: Path, field: str) -> Path | None:
    try:
        return note.parent / str(from_json(note.read_text(encoding="utf-8"))[field])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


_INDEX: Final = "index.json"


@dataclass(frozen=True)
class StoredInput:
    """An input folder or file of a request, as an entry for a store.

    Attributes:
        entry: all of its files and those of the folders that it inherits from, by path relative to ``root``.
        root: common parent folder of all these files.
        within: path of the input itself, relative to ``root``.
    """

    entry: Entry
    root: Path
    within: str


def inputs_for_store(request: BuildRequest, hashes: FileHashes) -> dict[str, StoredInput]:
    """Return the inputs of a request by name: ``checkpoint``, ``golden`` if given, and each LoRA.

    Files with a known hash are not read again.

    Raises:
        ArtifactError: a file has disappeared.
    """
    checkpoint = request.checkpoint.resolve()
    folders = [checkpoint, *(parent.resolve() for parent in parents(checkpoint))]
    root = Path(os.path.commonpath(folders))
    names = [_within(root, folder, name) for folder in folders for name in files_in(folder, READ)]
    found = {"checkpoint": _input("checkpoint", root, names, _within(root, checkpoint), hashes)}
    if request.golden is not None:
        golden = request.golden.resolve()
        found["golden"] = _input("golden cases", golden, [_INDEX, *_cases(golden)], "", hashes)
    for name, file in lora_files(request.recipes).items():
        folder, files = files_of_lora(file.absolute())
        found[name] = _input(f"LoRA {file.name}", folder, files, "" if file.is_dir() else file.name, hashes)
    return found


def _input(label: str, root: Path, names: Iterable[str], within: str, hashes: FileHashes) -> StoredInput:
    files = {}
    for name, digest in hashes.hashes(root, sorted(set(names))).items():
        if digest is None:
            raise ArtifactError(f"{root / name} disappeared; run the same command again")
        files[name] = StoredFile((root / name).stat().st_size, digest)
    key = key_of({"input": {name: file.sha256 for name, file in files.items()}})
    return StoredInput(Entry(SCHEMA, key, "input", label, files), root, within)


def _cases(golden: Path) -> list[str]:
    """Return the case files listed in the index, which planning has already validated."""
    return [str(case["file"]) for case in from_json((golden / _INDEX).read_text(encoding="utf-8"))["cases"]]


def _within(root: Path, folder: Path, name: str = "") -> str:
    return (folder / name).relative_to(root).as_posix()
