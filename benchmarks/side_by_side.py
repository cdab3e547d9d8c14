"""What benchmarks share: processes apart from each other, latencies in alternation, tables."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np

from coreml_measure import Round, Subject

SPAWN: Final = multiprocessing.get_context("spawn")


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, from a process of its own: one that did something else would show another's memory."""
    with ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(function, *args).result()


def latencies(
    serve: Callable[[Connection, Subject, Path], None], subject: Subject, files: Mapping[str, Path], rounds: int
) -> dict[str, list[Round]]:
    """Each file in a process of its own, one at a time, in turn; the first round warms up."""
    servers: dict[str, tuple[Any, Connection]] = {}
    for name, path in files.items():
        ours, theirs = SPAWN.Pipe()
        server = SPAWN.Process(target=serve, args=(theirs, subject, path), daemon=True)
        server.start()
        servers[name] = (server, ours)
    taken: dict[str, list[Round]] = {name: [] for name in files}
    for _ in range(rounds + 1):
        for name, (_, connection) in servers.items():
            connection.send(True)
            taken[name].append(connection.recv())
    for server, connection in servers.values():
        connection.send(False)
        server.join()
    return {name: got[1:] for name, got in taken.items()}


def times_faster(slow: Sequence[Round], fast: Sequence[Round], field: str) -> str:
    """Median of the rounds' own ratios of ``wall`` or ``cpu``."""
    return f"{np.median([getattr(a, field) / getattr(b, field) for a, b in zip(slow, fast, strict=True)]):.2f}"


def spread(seconds: Sequence[float]) -> str:
    """Median and quartiles in milliseconds."""
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75)) * 1e3
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}"


def folder(parent: str | Path, name: str) -> Path:
    path = Path(parent) / name
    path.mkdir()
    return path


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Markdown, figures to the right."""
    lines = [header, ("---", *["---:"] * (len(header) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_table(title: str, header: str, rows: Sequence[str]) -> None:
    """A titled table of cells that are joined already."""
    cells = [tuple(row.split(" | ")) for row in (header, *rows)]
    print(f"{title}:\n\n{table(cells[0], cells[1:])}\n", flush=True)
