"""Entries of the cache → an export folder under its name, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from md_export.engine.cache import Cache, Entry
from md_export.engine.executors import Executor
from md_export.engine.keys import FileHashes, files_in
from md_export.engine.plan import Cost, ExportPlan, ExportResult, Plan, Step
from md_export.engine.request import BuildRequest
from md_export.engine.scheduler import Failure, Listener
from md_export.errors import ArtifactError, MdExportError, OutputError
from md_export.spec.manifest import MANIFEST
from md_export.system.files import copy_file, refuse_existing, sha256_of, to_disk

_ATTEMPTS: Final = 5
Status = Literal["up to date", "planned", "from the cache", "built", "failed"]


@dataclass(frozen=True)
class Built:
    """What became of one export."""

    name: str
    folder: Path
    status: Status


@dataclass(frozen=True)
class Outcome:
    """What became of a build."""

    exports: tuple[Built, ...]
    failures: tuple[Failure, ...] = ()


class Placer:
    """Passes on what happens, and puts each export into its folder as soon as it is proved."""

    def __init__(
        self,
        plan: Plan,
        due: list[ExportPlan],
        request: BuildRequest,
        executor: Executor,
        work: Path,
        listener: Listener,
    ) -> None:
        self._plan, self._due, self._request, self._executor = plan, due, request, executor
        self._work, self._listener = work, listener
        self.status: dict[str, Status] = {export.name: "failed" for export in due}
        self.failures: list[Failure] = []

    def place_cached(self, steps: tuple[Step, ...]) -> None:
        """Place exports that need no step any more."""
        for export in self._due:
            if self._plan.step(export.key) not in steps:
                self._place(export, "from the cache")

    def started(self, step: Step) -> None:
        """Pass it on."""
        self._listener.started(step)

    def finished(self, step: Step, cost: Cost) -> None:
        """Pass it on; place the export that the step completes."""
        self._listener.finished(step, cost)
        for export in self._due:
            if export.key == step.key:
                self._place(export, "built")

    def failed(self, failure: Failure) -> None:
        """Pass it on."""
        self._listener.failed(failure)

    def tick(self) -> None:
        """Pass it on, after the executor's news."""
        for text in self._executor.news():
            self._listener.line(text)
        self._listener.tick()

    def _place(self, export: ExportPlan, status: Status) -> None:
        step, folder, cache = self._plan.step(export.key), self._request.out / export.name, self._executor.cache
        try:
            entries = [cache.require(key) for key in (*step.needs, step.key)]
            place(cache, entries, folder, self._work, replace=self._request.only is None)
        except (MdExportError, OSError) as error:
            self.failures.append(Failure(step, f"{folder} was not written: {error}", error))
            self._listener.failed(self.failures[-1])
            return
        self.status[export.name] = status
        self._listener.placed(folder)


def expected(entry: Entry) -> dict[str, str]:
    """SHA-256 of every file of an export, by its path there, from the entry of its last step."""
    others = entry.result.others if isinstance(entry.result, ExportResult) else {}
    return others | {name: file.sha256 for name, file in entry.files.items()}


def is_placed(folder: Path, entry: Entry, hashes: FileHashes) -> bool:
    """Whether the folder holds these files, and no others in folders of theirs; unchanged ones are not read again."""
    wanted = expected(entry)
    if files_in(folder, {name.split("/", 1)[0] for name in wanted}) != sorted(wanted):
        return False
    return hashes.hashes(folder, wanted) == wanted


def check_replaceable(folder: Path) -> None:
    """Raise :class:`OutputError` where something lies there that is no export."""
    if folder.is_symlink() or (folder.exists() and not (folder / MANIFEST).is_file()):
        raise OutputError(f"{folder} exists and is no export of md-export; remove it, or name another folder with -o")


def place(cache: Cache, entries: Iterable[Entry], folder: Path, work: Path, replace: bool) -> None:
    """Copy all files of the entries to ``folder``; what lay there goes when the new files are complete.

    Args:
        work: a folder on the same disk, to copy to first.
        replace: an export may lie there already.

    Raises:
        ArtifactError: a file of the cache is not what it was.
        OutputError: something lies there that is no export, or anything where it may not be replaced.
    """
    made = work / folder.name
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for entry in entries:
        for name, file in entry.files.items():
            _copy(cache.files(entry.key) / name, made / name, file.sha256)
    if replace:
        _swap(made, folder)
    else:
        refuse_existing(folder)
        made.rename(folder)
    to_disk(folder.parent)


def _swap(made: Path, folder: Path) -> None:
    """Give ``made`` the name ``folder``. Another build may do the same at any moment: the last one stays."""
    old = made.with_name(f"{made.name}.replaced")
    for attempt in range(_ATTEMPTS):
        check_replaceable(folder)
        try:
            if folder.exists():
                folder.rename(old)
            made.rename(folder)
            break
        except OSError:
            if attempt == _ATTEMPTS - 1:
                raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _copy(source: Path, destination: Path, sha256: str) -> None:
    """Bring a copy to the disk, and compare its hash."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    copy_file(source, destination)
    to_disk(destination)
    if sha256_of(destination) != sha256:
        raise ArtifactError(f"{source} of the cache was altered; run the same command again")
