"""Copies of an export for damage; the export and the other copies stay unchanged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from md_export.parity.golden.folder import INDEX, GoldenSet
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, artifact_path, bytes_of_artifact, sha256_of_artifact
from md_export.spec.given import MANIFEST
from md_export.spec.manifest import Manifest
from md_export.system.files import sha256_of
from md_export.targets import TARGETS
from md_export.targets.contract import Target
from md_export.targets.stored import Constant

# JSON object of a manifest or a golden index, before validation.
Json = dict[str, Any]
Change = Callable[[Json], Any]


class NotApplicable(Exception):
    """The mutation cannot be applied to this export; the message gives the reason."""


@dataclass(frozen=True)
class Sandbox:
    """A copy of an export and the component to damage; ``manifest`` is the original one."""

    folder: Path
    manifest: Manifest
    golden: GoldenSet
    component: str

    @property
    def entry(self) -> ArtifactEntry:
        """The component's entry in the manifest."""
        return self.manifest.entry_for(self.component)

    @property
    def target(self) -> Target:
        """The functions of the export's target."""
        return TARGETS[self.manifest.target].open()

    def artifact(self) -> Path:
        """Return the component's artifact, after breaking its links to other copies."""
        path = artifact_path(self.folder, self.entry)
        for file in (*path.rglob("*"), path, path.with_name(path.name + ".data")):
            if file.is_file():
                make_own(file)
        return path

    @contextmanager
    def constants(self) -> Iterator[list[Constant]]:
        """Yield the artifact's constants in order of use; changes are written to the file."""
        with self.target.edit(self.artifact()) as found:
            yield found

    def edit_manifest(self, change: Change) -> None:
        """Change the manifest's JSON."""
        edit_json(self.folder / MANIFEST, change)

    def edit_entry(self, change: Change) -> None:
        """Change the component's entry in the manifest."""
        place = self.manifest.artifacts.index(self.entry)
        self.edit_manifest(lambda values: change(values["artifacts"][place]))

    def edit_index(self, change: Change) -> None:
        """Change the golden index's JSON."""
        edit_json(self.folder / GOLDEN_FOLDER / INDEX, change)

    def golden_file(self) -> Path:
        """Return the first golden file, after breaking its link to other copies."""
        path = self.folder / GOLDEN_FOLDER / self.golden.index.cases[0].file
        make_own(path)
        return path


def make_own(file: Path) -> None:
    """Replace a hard link by a copy of the file."""
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)


def halve(file: Path) -> None:
    """Truncate a file to its first half, after breaking its link to other copies."""
    make_own(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit_json(path: Path, change: Change) -> None:
    """Change a JSON object and write it to a new file, which breaks links."""
    values = from_json(path.read_text(encoding="utf-8"))
    change(values)
    path.unlink()
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def copy_with_cases(out: Path, folder: Path, count: int) -> None:
    """Copy an export with its first ``count`` golden cases of different prompts, and one of each style.

    Recipe, index and manifest agree.
    """
    shutil.copytree(out, folder)
    golden = folder / GOLDEN_FOLDER
    cases = from_json((golden / INDEX).read_text(encoding="utf-8"))["cases"]
    seed = cases[0]["seed"]
    base = [case for case in cases if "style" not in case and case["seed"] == seed]
    kept = list({case["prompt"]: case for case in reversed(base)}.values())[::-1][:count]
    prompts = [case["prompt"] for case in kept]
    kept += {case["style"]: case for case in reversed(cases) if "style" in case}.values()
    for path in golden.iterdir():
        if path.name not in {INDEX, *(case["file"] for case in kept)}:
            path.unlink()
    named = [case | {"name": f"case-{number:03d}"} for number, case in enumerate(kept)]
    edit_json(golden / INDEX, lambda index: index.update(cases=named))
    plan = {"prompts": prompts, "seeds": [seed]}
    edit_json(folder / MANIFEST, lambda manifest: manifest["recipe"].update(golden=plan))
    agree(folder)


def link_copy(folder: Path, copy: Path) -> None:
    """Copy an export by hard links; :func:`make_own` must precede any change of a file."""
    shutil.copytree(folder, copy, copy_function=os.link)


def agree_index(out: Path) -> None:
    """Make the golden index agree with its files."""
    folder = out / GOLDEN_FOLDER

    def change(index: Json) -> None:
        for case in index["cases"]:
            case["sha256"] = sha256_of(folder / case["file"])

    edit_json(folder / INDEX, change)


def agree(out: Path) -> None:
    """Make index and manifest agree with the files, as an attacker or a careless script would."""
    agree_index(out)

    def change(manifest: Json) -> None:
        manifest["golden_sha256"] = sha256_of(out / GOLDEN_FOLDER / INDEX)
        for entry in manifest["artifacts"]:
            path = out / entry["file"]
            entry.update(sha256=sha256_of_artifact(path), bytes=bytes_of_artifact(path))
        manifest["files"] = {name: sha256_of(out / name) for name in manifest["files"] if (out / name).is_file()}

    edit_json(out / MANIFEST, change)
