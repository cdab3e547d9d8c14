"""THE map of a build: plan, look what is there already, run the steps that are missing, place the exports.

Nothing here imports torch: a build that has nothing to do says so at once, and memory is the workers' alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from md_export.engine.cache import Cache, Entry
from md_export.engine.executors import Site, site_of
from md_export.engine.inputs import missing, planned
from md_export.engine.keys import Seen
from md_export.engine.placing import check_replaceable, is_placed, place
from md_export.engine.plan import Cost, ExportPlan, Plan, Step
from md_export.engine.request import BuildRequest
from md_export.engine.scheduler import Failure, Limits, Watcher, run_steps
from md_export.errors import MdExportError
from md_export.system.files import require_space
from md_export.system.workspace import workspace

Status = Literal["up to date", "planned", "from the cache", "built", "failed"]


class Listener(Watcher, Protocol):
    """Who is told what is going to happen, and then what happens."""

    def line(self, text: str) -> None:
        """Something that should be known."""

    def planned(self, steps: tuple[Step, ...], cached: int, limits: Limits) -> None:
        """The steps that will run; ``cached`` others are in the cache."""

    def placed(self, folder: Path) -> None:
        """An export is in its folder."""


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


def build(request: BuildRequest, listener: Listener, dry: bool = False) -> Outcome:
    """Bring one export for each recipe into ``request.out``; what is there and right already stays as it is.

    ``dry``: tell the plan, and do nothing.

    Raises:
        MdExportError: nothing could be begun. What fails later is in the outcome.
    """
    cache, seen = Cache(request.cache), Seen(request.cache.absolute() / "seen")
    plan = planned(request, cache, seen)
    due = [export for export in plan.exports if not _is_there(export, request, cache, seen)]
    if not due:
        return _outcome(plan, request, {})
    for export in due:
        check_replaceable(request.out / export.name)
    with site_of(request, plan) as site:
        steps, cached = missing(plan, due, site.cache, listener.line)
        listener.planned(steps, cached, site.limits)
        if dry:
            return _outcome(plan, request, {export.name: "planned" for export in due})
        require_space(request.out, sum(export.space for export in due))
        require_space(cache.root, sum(export.space for export in due if plan.step(export.key) in steps))
        with workspace(request.out) as placing, site.open(steps) as begin:
            placer = _Placer(plan, due, request, site, placing, listener)
            placer.place_cached(steps)
            failures = run_steps(steps, begin, site.limits, placer)
    for export in due:
        _is_there(export, request, cache, seen)
    return _outcome(plan, request, placer.status, (*failures, *placer.failures))


def _outcome(
    plan: Plan, request: BuildRequest, status: dict[str, Status], failures: tuple[Failure, ...] = ()
) -> Outcome:
    names = [export.name for export in plan.exports]
    return Outcome(tuple(Built(one, request.out / one, status.get(one, "up to date")) for one in names), failures)


def _is_there(export: ExportPlan, request: BuildRequest, cache: Cache, seen: Seen) -> bool:
    """Whether its folder holds what its entry says; hashes are remembered for the next time."""
    entry, folder = cache.read(export.key), request.out / export.name
    return entry is not None and is_placed(folder, entry, seen)


class _Placer:
    """Passes on what happens, and puts each export into its folder as soon as it is proved."""

    def __init__(
        self, plan: Plan, due: list[ExportPlan], request: BuildRequest, site: Site, work: Path, listener: Listener
    ) -> None:
        self._plan, self._due, self._out, self._cache = plan, due, request.out, site.cache
        self._work, self._listener, self._news = work, listener, site.news
        self.status: dict[str, Status] = {export.name: "failed" for export in due}
        self.failures: list[Failure] = []

    def place_cached(self, steps: tuple[Step, ...]) -> None:
        """Exports that need no step any more."""
        for export in self._due:
            if self._plan.step(export.key) not in steps:
                self._place(export, "from the cache")

    def started(self, step: Step) -> None:
        self._listener.started(step)

    def finished(self, step: Step, cost: Cost) -> None:
        self._listener.finished(step, cost)
        for export in self._due:
            if export.key == step.key:
                self._place(export, "built")

    def failed(self, failure: Failure) -> None:
        self._listener.failed(failure)

    def tick(self) -> None:
        for text in self._news():
            self._listener.line(text)
        self._listener.tick()

    def _place(self, export: ExportPlan, status: Status) -> None:
        step, folder = self._plan.step(export.key), self._out / export.name
        try:
            place(self._cache, self._entries(step), folder, self._work)
        except (MdExportError, OSError) as error:
            self.failures.append(Failure(step, f"{folder} was not written: {error}", error))
            self._listener.failed(self.failures[-1])
            return
        self.status[export.name] = status
        self._listener.placed(folder)

    def _entries(self, step: Step) -> list[Entry]:
        return [self._cache.require(key) for key in (*step.needs, step.key)]
