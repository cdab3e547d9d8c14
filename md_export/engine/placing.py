"""Copy cache entries to an export folder, which appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from md_export.engine.cache import Cache, Entry
from md_export.engine.executors import Executor
from md_export.engine.keys import FileHashes, files_in
from md_export.engine.plan import Cost, ExportPlan, ExportResult, Plan, Step
from md_export.engine.request import BuildRequest
from md_export.engine.running import Listener, Watcher
from md_export.engine.schedule import Failure
from md_export.errors import ArtifactError, MdExportError, OutputError
from md_export.spec.given import MANIFEST
from md_export.system.files import copy_file, refuse_existing, sha256_of, to_disk

_ATTEMPTS: Final = 5
Status = Literal["up to date", "planned", "from the cache", "built", "failed"]


@dataclass(frozen=True)
class Built:
    """Final status of one export."""

    name: str
    folder: Path
    status: Status


@dataclass(frozen=True)
class Outcome:
    """Result of a build: the status of each export, and the failures."""

    exports: tuple[Built, ...]
    failures: tuple[Failure, ...] = ()


class Placer(Watcher):
    """Watcher that forwards events to the listener, and places each export in its folder when it is verified."""

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
        self._running: set[str] = set()

    def place_cached(self, lacking: Collection[str]) -> None:
        """Place the exports with a cached result: the key of their last step is not in ``lacking``."""
        for export in self._due:
            if export.key not in lacking:
                self._place(export, "from the cache")

    def started(self, step: Step) -> None:
        """Forward the event."""
        self._running.add(step.key)
        self._listener.started(step)

    def finished(self, step: Step, cost: Cost) -> None:
        """Forward the event, and place the exports that the step completes."""
        self._running.discard(step.key)
        self._listener.finished(step, cost)
        for export in self._due:
            if export.key == step.key:
                self._place(export, "built")

    def failed(self, failure: Failure) -> None:
        """Forward the event."""
        self._running.discard(failure.step.key)
        self._listener.failed(failure)

    def tick(self) -> None:
        """Forward the executor's news and what the running steps say, then the event."""
        for text in self._executor.news():
            self._listener.line(text)
        for key in self._running:
            self._listener.doing(key, self._executor.said(key))
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
    """Return the SHA-256 of every file of an export by its path in the export, from the entry of its last step."""
    others = entry.result.others if isinstance(entry.result, ExportResult) else {}
    return others | {name: file.sha256 for name, file in entry.files.items()}


def is_placed(folder: Path, entry: Entry, hashes: FileHashes) -> bool:
    """Return whether ``folder`` holds exactly the files of ``entry``, with the same hashes.

    Files outside the entry's top-level names are ignored. Unchanged files are not read again.
    """
    wanted = expected(entry)
    if files_in(folder, {name.split("/", 1)[0] for name in wanted}) != sorted(wanted):
        return False
    return hashes.hashes(folder, wanted) == wanted


def check_replaceable(folder: Path) -> None:
    """Raise :class:`OutputError` if ``folder`` exists and is not an export."""
    if folder.is_symlink() or (folder.exists() and not (folder / MANIFEST).is_file()):
        raise OutputError(f"{folder} exists and is not an md-export export; remove it, or name another folder with -o")


def place(cache: Cache, entries: Iterable[Entry], folder: Path, work: Path, replace: bool) -> None:
    """Copy all files of the entries to ``folder``; an existing export is removed after the new files are complete.

    Args:
        work: folder on the same disk that receives the files first.
        replace: whether ``folder`` may be an existing export.

    Raises:
        ArtifactError: a file in the cache was altered.
        OutputError: ``folder`` exists and is not an export, or exists and ``replace`` is false.
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
    """Rename ``made`` to ``folder``. Another build may do the same concurrently; the last one stays."""
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
    """Copy a file, flush the copy to disk and check its hash."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    copy_file(source, destination)
    if source.stat().st_mode & 0o100:  # a script
        destination.chmod(0o755)
    to_disk(destination)
    if sha256_of(destination) != sha256:
        raise ArtifactError(f"{source} in the cache was altered; run the same command again")
