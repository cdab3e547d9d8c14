"""Progress on standard error: a bar with elapsed time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape
from rich.table import Table

from md_export.engine.cache import Listed
from md_export.engine.placing import Outcome
from md_export.engine.plan import Cost, Step
from md_export.engine.running import Listener, Teller
from md_export.engine.schedule import Failure, Limits
from md_export.report.tables import console, decibel, drawn
from md_export.spec.manifest import read_manifest
from md_export.system.terminal_text import spelled_time, visible

if TYPE_CHECKING:
    from rich.progress import Progress

    from md_export.engine.join import Shared

# Interval of lines in a log: often enough to see progress.
_LINE_EVERY_S: Final = 20.0
# Share of a step's predicted seconds, its last ones, that stretches where the prediction was short: the bar moves on.
_LAST: Final = 0.3
# Predicted seconds that count as taken before any step has ended, so that the first short one does not set the pace.
_PRIOR_S: Final = 10.0
_MOMENT_S: Final = 0.1


def _bar() -> Progress:
    """Return a bar on standard error with a spinner, the elapsed time and the current step."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console(stderr=True), transient=True)


@contextmanager
def progress_to_stderr(steps: int) -> Iterator[Callable[[str], None]]:
    """Yield ``report(text)``; each call starts one of about ``steps`` steps."""
    if not sys.stderr.isatty():
        yield lambda text: print(visible(text), file=sys.stderr, flush=True)
        return
    with _bar() as bar:
        task = bar.add_task("starting", total=steps + 1)
        yield lambda text: bar.update(task, advance=1, description=escape(visible(text)))


@contextmanager
def counting_to_stderr(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield ``count(done, total, text)``, which shows a bar on a terminal and prints occasional lines elsewhere."""
    if not sys.stderr.isatty():
        next_line = 0.0

        def count(done: int, total: int, text: str) -> None:
            """Print the first count, the last count, and one per interval between them."""
            nonlocal next_line
            now = time.monotonic()
            if now >= next_line or done >= total:
                next_line = now + _LINE_EVERY_S
                print(f"{done} of {total} {what}, {text}", file=sys.stderr, flush=True)

        yield count
        return
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, text: bar.update(
            task, completed=done, total=total, description=f"{done}/{total} {what}, {text}"
        )


@contextmanager
def building_to_stderr() -> Iterator[Listener]:
    """Yield a listener for one build, which shows a bar on a terminal and prints plain lines elsewhere."""
    with _bar() if sys.stderr.isatty() else nullcontext() as bar:
        yield _Teller(bar)


@contextmanager
def exporting_to_stderr() -> Iterator[Listener]:
    """A listener for one export: a bar on a terminal, elsewhere what is built and the name of each step."""
    if sys.stderr.isatty():
        with _bar() as bar:
            yield _Teller(bar)
    else:
        yield Teller(lambda text: print(visible(text), file=sys.stderr, flush=True))


class _Teller(Listener):
    """Listener that counts predicted seconds and estimates the remaining time from the pace so far."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._begun: dict[str, float] = {}
        self._open: dict[str, Step] = {}
        self._said: dict[str, str] = {}
        self._count = self._ended = 0
        self._predicted = self._taken = self._share = 0.0
        self._ticked = time.monotonic()
        self._jobs = 1
        if bar is not None:
            self._task = bar.add_task("reading recipe and checkpoint", total=None)

    def line(self, text: str) -> None:
        text = visible(text)
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(escape(text), soft_wrap=True)

    def planned(self, steps: tuple[Step, ...], cached: tuple[Step, ...], limits: Limits) -> None:
        self._open = {step.key: step for step in steps}
        self._count, self._jobs, self._ticked = len(steps), limits.jobs, time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, total=1.0)
        for text in plan_lines(steps, len(cached), limits):
            self.line(text)

    def started(self, step: Step) -> None:
        self._begun[step.key] = time.monotonic()
        self.line(f"{step.label} …")

    def finished(self, step: Step, cost: Cost) -> None:
        self._predicted += step.cost.seconds
        self._taken += cost.seconds
        self._end(step, f"{cost.seconds:.0f} s, {cost.peak_bytes / 1e9:.1f} GB")

    def failed(self, failure: Failure) -> None:
        self._end(failure.step, f"FAILED: {failure.reason}" if failure.error else failure.reason)

    def placed(self, folder: Path) -> None:
        self.line(f"{folder}: verified")

    def doing(self, key: str, text: str) -> None:
        self._said[key] = text

    def tick(self) -> None:
        if self._bar is not None:
            running = [(self._open[key].label, self._said.get(key)) for key in self._begun if key in self._open]
            names = ", ".join(f"{label} ({said or 'loading libraries'})" for label, said in running)
            text = f"{self._eta()}, {self._ended} of {self._count} steps  {visible(names)}"
            now = time.monotonic()
            # The share that is left shrinks as the time that is left: the bar neither stands still nor goes back.
            passed, self._ticked = now - self._ticked, now
            self._share += (1.0 - self._share) * passed / (passed + self._left() + _MOMENT_S)
            self._bar.update(self._task, completed=self._share, description=escape(text))

    def _end(self, step: Step, text: str) -> None:
        self._ended += step.key in self._open
        self._open.pop(step.key, None)
        self.line(f"[{self._ended}/{self._count}] {step.label}: {text}{f'; {self._eta()}' if self._open else ''}")

    def _eta(self) -> str:
        return f"about {spelled_time(self._left())} left"

    def _left(self) -> float:
        """Return the remaining seconds: the predicted ones, scaled by the pace of the finished steps."""
        now = time.monotonic()
        pace = (self._taken + _PRIOR_S) / (self._predicted + _PRIOR_S)
        rest = [
            left_of(pace * step.cost.seconds, now - self._begun[key] if key in self._begun else 0.0)
            for key, step in self._open.items()
        ]
        return max([sum(rest) / self._jobs, *rest, 0.0])


def left_of(predicted: float, elapsed: float) -> float:
    """Seconds that are left of a step: the prediction's rest, and less and less after most of it, but never none."""
    last = _LAST * predicted
    over = elapsed - (predicted - last)
    return predicted - elapsed if over <= 0 else last * last / (last + over)


def plan_lines(steps: tuple[Step, ...], cached: int, limits: Limits) -> list[str]:
    """Return the plan: a line with the totals, and one line per step with its predicted memory and time."""
    width = max((len(step.label) for step in steps), default=0)
    lines = [_plan_line(step, width, limits) for step in steps]
    seconds = sum(step.cost.seconds for step in steps) / limits.jobs
    most = f"{limits.most_bytes / 1e9:.1f} GB{' each' if limits.apart else ''}"
    about = f"about {spelled_time(seconds)} with {limits.jobs} at a time in {most}" if steps else "nothing to run"
    return [f"plan: {len(steps)} steps, {cached} more in the cache; {about}", *lines]


def _plan_line(step: Step, width: int, limits: Limits) -> str:
    memory, least = step.cost.peak_bytes / 1e9, limits.most_bytes
    note = "   does not fit" if step.cost.peak_bytes > least else ""
    return f"  {step.label:<{width}}  {memory:5.1f} GB  {spelled_time(step.cost.seconds):>8}{note}"


def outcome_table(outcome: Outcome) -> Table:
    """Return one row per export: folder, origin, size, and SNR against the checkpoint."""
    rows = [(str(one.folder), one.status, *_figures(one.folder, one.status)) for one in outcome.exports]
    return drawn("exports", ("folder", "verdict", "MB", "worst component dB", "picture dB"), rows)


def _figures(folder: Path, status: str) -> tuple[str, str, str]:
    if status in ("failed", "planned"):
        return "-", "-", "-"
    manifest = read_manifest(folder)
    worst = min((entry.parity.snr_db for entry in manifest.artifacts if entry.parity), default=None)
    size = sum(entry.bytes for entry in manifest.artifacts) / 1e6
    return f"{size:,.1f}", decibel(worst), decibel(manifest.picture_psnr_db)


def cache_table(listed: Sequence[Listed], root: str) -> Table:
    """Return one row per cache entry, with the total bytes in the title."""
    total, rows = sum(one.entry.bytes for one in listed) / 1e6, []
    for one in listed:
        entry, used = one.entry, time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        rows.append((entry.key[:12], entry.label, str(len(entry.files)), f"{entry.bytes / 1e6:,.1f}", used))
    return drawn(f"{root}: {len(listed)} entries, {total:,.1f} MB", ("key", "made", "files", "MB", "last used"), rows)


def shared_table(shared: Iterable[Shared]) -> Table:
    """Return one row per component: the bytes of its separate packages, and of the joined one."""
    rows = ((one.component, f"{one.apart / 1000:,.0f}", f"{one.joined / 1000:,.0f}") for one in shared)
    return drawn("weights stored once", ("component", "apart KB", "joined KB"), rows)
