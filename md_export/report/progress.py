"""Progress for whoever is watching: a bar with elapsed time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# Lines of a log that nobody watches: often enough to see that it goes on.
_LINE_EVERY_S: Final = 20.0


@contextmanager
def progress_to_stderr(steps: int) -> Iterator[Callable[[str], None]]:
    """Yield ``report(text)``; each call begins one of about ``steps`` steps."""
    if not sys.stderr.isatty():
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=steps + 1)

        def report(text: str) -> None:
            bar.advance(task)
            bar.update(task, description=text)

        yield report


@contextmanager
def counting_to_stderr(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield ``count(done, total, text)``: a bar on a terminal, elsewhere a line now and then."""
    if not sys.stderr.isatty():
        yield _Lines(what).count
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=f"{what}, {text}")


class _Lines:
    """The first count, the last, and one at a time between."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = 0.0

    def count(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + _LINE_EVERY_S
        print(f"{done} of {total} {self._what}, {text}", file=sys.stderr, flush=True)
