"""The shards of a conformance run as one Markdown page.

python tests/conformance_table.py shard-*.json > docs/mil-conformance.md
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# scope: left out; skipped, xfailed: by coremltools itself; compared: at least one output was.
COLUMNS = ("collected", "scope", "ran", "compared", "passed", "failed", "known", "unimplemented", "skipped", "xfailed")
# Every shard collects all tests and counts them, and what is left out, alike.
_IN_EVERY_SHARD = ("collected", "scope")


def lines(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Markdown: one line per file, and their sum."""
    total: Counter[str] = Counter()
    yield _line("file", COLUMNS)
    yield "|---" + "|---:" * len(COLUMNS) + "|"
    for name in sorted(counts):
        total.update(counts[name])
        yield _line(name, [counts[name].get(column, 0) for column in COLUMNS])
    yield _line("total", [total[column] for column in COLUMNS])


def _line(first: str, cells: Sequence[object]) -> str:
    widths = (max(len(column), 6) for column in COLUMNS)
    return (
        " | ".join([f"| {first:38}", *(f"{cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True))]) + " |"
    )


def merge(reports: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Counts of all shards by file."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for report in reports:
        for name, shard in report["counts"].items():
            counts[name].update({key: n for key, n in shard.items() if key not in _IN_EVERY_SHARD})
            counts[name].update({key: max(0, shard.get(key, 0) - counts[name][key]) for key in _IN_EVERY_SHARD})
    return counts


def page(reports: list[dict[str, Any]]) -> Iterator[str]:
    """The table, what did not pass, and what coremltools itself skips."""
    yield from lines(merge(reports))
    yield "\nNot passed:\n"
    yield from _counted(
        f"`{nodeid.split('/tests/')[-1].split('[')[0]}`: {text.split(' (')[0]}"
        for report in reports
        for nodeid, text in report["failures"]
    )
    yield "\nSkipped or expected to fail by coremltools itself, with its reasons:\n"
    yield from _counted(item for report in reports for why, n in report["skips"].items() for item in [why] * n)


def _counted(items: Iterable[str]) -> Iterator[str]:
    """Brackets are escaped: ``[a][b]`` is a link in Markdown."""
    found = ((" ".join(text.split()).replace("[", r"\["), count) for text, count in Counter(items).most_common())
    return (f"- {count} × {text}" for text, count in found)


def main(files: list[str]) -> None:
    """Print the page."""
    print("\n".join(page([json.loads(Path(name).read_text(encoding="utf-8")) for name in files])))


if __name__ == "__main__":
    main(sys.argv[1:])
