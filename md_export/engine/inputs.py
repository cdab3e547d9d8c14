"""The checkpoint and the golden cases that were given, as entries: so they reach machines that lack their paths."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from md_export.engine.cache import SCHEMA, Cache, Entry, StoredFile
from md_export.engine.costs import Measured
from md_export.engine.keys import Seen, files_in, key_of, maker
from md_export.engine.plan import ExportPlan, Plan, Step, plan_from_json
from md_export.engine.request import BuildRequest, lora_places
from md_export.errors import ArtifactError, ConversionError
from md_export.spec.recipe_file import recipe_to_dict
from md_export.system.files import write_whole
from md_export.targets.versions import optional, tools_of
from md_export.worker.calling import call_worker

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


def planned(request: BuildRequest, cache: Cache, seen: Seen) -> Plan:
    """The steps for a request, with the costs of earlier builds.

    Raises:
        MdExportError: a recipe cannot be carried out here, or the checkpoint or the golden cases cannot be read.
    """
    asked = {"recipes": [recipe_to_dict(recipe) for recipe in request.recipes], **places(request)}
    content = {
        **asked,
        "maker": maker(),
        "tools": [tools_of(recipe.target) for recipe in request.recipes] + [optional()],
        "files": _read_by(request, seen),
    }
    memory = cache.root / "plans" / f"{key_of(content)}.json"
    try:
        plan = plan_from_json(memory.read_bytes())
    except (OSError, ValueError):
        answer = json.dumps(call_worker("plan", asked, ConversionError, "planning"))
        plan = plan_from_json(answer)
        write_whole(memory, answer, keep_going=True)
    measured = Measured(cache.root / "measured")
    return replace(plan, steps=tuple(replace(one, cost=measured.cost(one.alike, one.cost)) for one in plan.steps))


def places(request: BuildRequest) -> dict[str, Any]:
    """Where workers find the checkpoint and golden cases."""
    given = request.golden and str(request.golden.resolve())
    loras = {name: str(file.resolve()) for name, file in lora_places(request.recipes).items()}
    return {"checkpoint": str(request.checkpoint.resolve()), "given": given, **loras}


def missing(
    plan: Plan, exports: Sequence[ExportPlan], cache: Cache, tell: Callable[[str], None]
) -> tuple[tuple[Step, ...], int]:
    """Steps whose results the cache lacks, and how many it has, of those that some exports need.

    What a step needs is not looked at where the step itself is there; but an export is copied with all of its parts,
    and one whose part has to be made again is proved again.
    """
    looked: dict[str, Entry | None] = {}

    def look(key: str) -> bool:
        if key not in looked:
            looked[key] = cache.get(key, tell)
        step, there = plan.step(key), looked[key] is not None
        if not there or step.kind == "export":
            whole = [look(need) for need in step.needs]
            if there and not all(whole):
                cache.remove(key)
                looked[key] = None
        return looked[key] is not None

    for export in exports:
        look(export.key)
    lacking = tuple(step for step in plan.steps if step.key in looked and looked[step.key] is None)
    return lacking, len(looked) - len(lacking)


def _read_by(request: BuildRequest, seen: Seen) -> list[dict[str, str | None]]:
    """Hashes of all files that the plan is made from."""
    roots: list[tuple[Path, tuple[str, ...]]] = [
        (root, READ) for root in (request.checkpoint, *parents(request.checkpoint)) if root.is_dir()
    ]
    if request.golden is not None and request.golden.is_dir():
        roots.append((request.golden, ("index.json",)))
    roots += [(file.parent, (file.name,)) for file in lora_places(request.recipes).values()]
    return [seen.hashes(root.resolve(), files_in(root, within)) for root, within in roots]


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
class Input:
    """A folder of the request.

    Attributes:
        entry: all of its files, and those of the folder that it inherits from, by their paths in ``root``.
        within: the folder's own path in ``root``.
    """

    entry: Entry
    root: Path
    within: str


def inputs_of(request: BuildRequest, seen: Seen) -> dict[str, Input]:
    """By the name that steps know them by; files that were read before are not read again.

    Raises:
        ArtifactError: a file went away.
    """
    checkpoint = request.checkpoint.resolve()
    folders = [checkpoint, *(parent.resolve() for parent in parents(checkpoint))]
    root = Path(os.path.commonpath(folders))
    names = [_within(root, folder, name) for folder in folders for name in files_in(folder, READ)]
    found = {"checkpoint": _input("checkpoint", root, names, _within(root, checkpoint), seen)}
    if request.golden is not None:
        golden = request.golden.resolve()
        found["given"] = _input("golden cases", golden, [_INDEX, *_cases(golden)], "", seen)
    for name, file in lora_places(request.recipes).items():
        found[name] = _input(f"LoRA {file.name}", file.absolute().parent, [file.name], file.name, seen)
    return found


def _input(label: str, root: Path, names: Iterable[str], within: str, seen: Seen) -> Input:
    files = {}
    for name, digest in seen.hashes(root, sorted(set(names))).items():
        if digest is None:
            raise ArtifactError(f"{root / name} went away; run the same command again")
        files[name] = StoredFile((root / name).stat().st_size, digest)
    key = key_of({"input": {name: file.sha256 for name, file in files.items()}})
    return Input(Entry(SCHEMA, key, "input", label, files, {}), root, within)


def _cases(golden: Path) -> list[str]:
    """Files that the index names; planning has read it by now."""
    return [str(case["file"]) for case in json.loads((golden / _INDEX).read_text(encoding="utf-8"))["cases"]]


def _within(root: Path, folder: Path, name: str = "") -> str:
    return (folder / name).relative_to(root).as_posix()
