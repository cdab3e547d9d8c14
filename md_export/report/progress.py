"""Progress for whoever is watching: a bar with elapsed time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
