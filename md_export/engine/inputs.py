"""What a build reads: the plan that follows from it, and checkpoints and golden cases as entries of a store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from md_export.engine.cache import SCHEMA, Entry, StoredFile
from md_export.engine.costs import Measured
from md_export.engine.keys import FileHashes, files_in, key_of, maker
from md_export.engine.plan import Inputs, Plan, plan_from_json, plan_to_json
from md_export.engine.request import BuildRequest, lora_files
from md_export.errors import ArtifactError, ConversionError
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.scheme import QuantScheme
from md_export.system.files import write_whole
from md_export.system.isolation import isolated
from md_export.targets import TARGETS
from md_export.targets.versions import optional, tools_of

# All that is read when a checkpoint is opened and exported; a test holds it against the files that are opened.
READ: Final = (
    "sibling.json",
    "loras.json",
    "loras",
    "model_index.json",
    "text_encoder",
    "tokenizer",
    "unet",
    "vae",
    "scheduler",
    "golden",
)


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is made of.

    Attributes:
        optional: each recipe's ``optional_schemes`` and ``optional_tolerances``, which recipes do not write.
    """

    recipes: tuple[Recipe, ...]
    optional: tuple[tuple[dict[str, QuantScheme], dict[str, Tolerance]], ...]
    checkpoint: Path
    golden: Path | None


_REQUEST: Final = TypeAdapter(PlanRequest)


def planned(request: BuildRequest) -> Plan:
    """The steps for a request, with the costs of earlier builds.

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
    )
    content = {
        "request": _REQUEST.dump_json(asked).decode(),
        "loras": [str(file.resolve()) for file in lora_files(request.recipes).values()],
        "maker": maker(),
        "tools": [tools_of(recipe.target) for recipe in request.recipes] + [optional()],
        "files": _read_by(request, FileHashes(request.cache / "seen")),
    }
    memory = request.cache / "plans" / f"{key_of(content)}.json"
    try:
        plan = plan_from_json(memory.read_bytes())
    except (OSError, ValueError):
        plan = isolated(make_plan, ConversionError, "planning", preload=("md_export.engine.planning",))(asked)
        write_whole(memory, plan_to_json(plan), keep_going=True)
    exports = plan.exports if request.only is None else tuple(replace(one, name=request.only) for one in plan.exports)
    measured = Measured(request.cache / "measured")
    return replace(
        plan,
        exports=exports,
        steps=tuple(replace(one, cost=measured.cost(one.cost_key, one.cost)) for one in plan.steps),
    )


def make_plan(request: PlanRequest) -> Plan:
    """Plan; runs inside a worker process, which alone imports what reads checkpoints."""
    from md_export.engine.planning import plan

    pairs = zip(request.recipes, request.optional, strict=True)
    recipes = [
        replace(recipe, optional_schemes=schemes, optional_tolerances=tolerances)
        for recipe, (schemes, tolerances) in pairs
    ]
    return plan(recipes, request.checkpoint, request.golden)


def inputs_of(request: BuildRequest) -> Inputs:
    """Where this machine has the inputs of all steps."""
    loras = {name: file.resolve() for name, file in lora_files(request.recipes).items()}
    return Inputs(request.checkpoint.resolve(), request.golden and request.golden.resolve(), loras)


def _read_by(request: BuildRequest, hashes: FileHashes) -> list[dict[str, str | None]]:
    """Hashes of all files that the plan is made from."""
    roots: list[tuple[Path, tuple[str, ...]]] = [
        (root, READ) for root in (request.checkpoint, *parents(request.checkpoint)) if root.is_dir()
    ]
    if request.golden is not None and request.golden.is_dir():
        roots.append((request.golden, ("index.json",)))
    roots += [(file.parent, (file.name,)) for file in lora_files(request.recipes).values()]
    return [hashes.hashes(root.resolve(), files_in(root, within)) for root, within in roots]


def parents(checkpoint: Path) -> Iterator[Path]:
    """The folders that a checkpoint takes files from, if there are any; where a note is wrong, the worker says so."""
    base = _named(checkpoint / "loras.json", "base")
    parent = _named((base or checkpoint) / "sibling.json", "parent")
    yield from (folder for folder in (base, parent) if folder is not None)


def _named(note: Path, field: str) -> Path | None:
    try:
        return note.parent / str(json.loads(note.read_text(encoding="utf-8"))[field])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


_INDEX: Final = "index.json"


@dataclass(frozen=True)
class StoredInput:
    """A folder of the request, for a store.

    Attributes:
        entry: all of its files, and those of the folder that it inherits from, by their paths in ``root``.
        within: the folder's own path in ``root``.
    """

    entry: Entry
    root: Path
    within: str


def inputs_for_store(request: BuildRequest, hashes: FileHashes) -> dict[str, StoredInput]:
    """``checkpoint``, ``golden`` and each LoRA, by its name; files that were read before are not read again.

    Raises:
        ArtifactError: a file went away.
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
        found[name] = _input(f"LoRA {file.name}", file.absolute().parent, [file.name], file.name, hashes)
    return found


def _input(label: str, root: Path, names: Iterable[str], within: str, hashes: FileHashes) -> StoredInput:
    files = {}
    for name, digest in hashes.hashes(root, sorted(set(names))).items():
        if digest is None:
            raise ArtifactError(f"{root / name} went away; run the same command again")
        files[name] = StoredFile((root / name).stat().st_size, digest)
    key = key_of({"input": {name: file.sha256 for name, file in files.items()}})
    return StoredInput(Entry(SCHEMA, key, "input", label, files), root, within)


def _cases(golden: Path) -> list[str]:
    """Files that the index names; planning has read it by now."""
    return [str(case["file"]) for case in json.loads((golden / _INDEX).read_text(encoding="utf-8"))["cases"]]


def _within(root: Path, folder: Path, name: str = "") -> str:
    return (folder / name).relative_to(root).as_posix()
