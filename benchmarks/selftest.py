"""The self-test of the gate on several exports, as one table.

    python benchmarks/selftest.py OUT...

Runs ``md-export verify OUT --self-test`` on each export of the nano checkpoint and prints how many tries were rejected,
and for each mutation the check that noticed it and the exports that have nothing of the kind. Exit 3 if one got past.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from md_export.engine.selftest import self_test
from md_export.parity.selftest.run import CONTROL, Row, SelfTest
from md_export.parity.selftest.table import MUTATIONS, Hashes
from md_export.spec.shipped_files import nano_checkpoint


def summary(found: SelfTest) -> str:
    """One line: tries that were rejected, that do not apply, that got past, and the seconds."""
    tries = [row for row in found.rows if row.mutation != CONTROL]
    counts = {word: sum(row.verdict == word for row in tries) for word in ("rejected", "not applicable")}
    past = len(found.failures)
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"{found.recipe}: {told}, {past} got past, {found.seconds:.0f} s"


def table(tests: list[SelfTest]) -> list[str]:
    """Markdown rows, one for each mutation."""
    rows = [(test.recipe, row) for test in tests for row in test.rows]
    lines = [
        "| mutation | of | hashes kept | index agrees | all agree | not applicable to |",
        "|---|---|---|---|---|---|",
    ]
    for mutation in MUTATIONS:
        own = [(recipe, row) for recipe, row in rows if row.mutation == mutation.name]
        lacks = sorted({recipe for recipe, row in own if row.verdict == "not applicable"})
        cells = [mutation.name, mutation.of, *(_noticed(own, hashes) for hashes in Hashes), ", ".join(lacks)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _noticed(rows: list[tuple[str, Row]], hashes: Hashes) -> str:
    found = {row.expected for _, row in rows if row.hashes == hashes and row.verdict == "rejected"}
    return ", ".join(sorted(found))


@click.command()
@click.argument("outs", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
def main(outs: tuple[Path, ...]) -> None:
    """Print the summary of each export and the table."""
    print(f"{len(MUTATIONS)} mutations, {sum(len(one.caught) for one in MUTATIONS)} tries an export", flush=True)
    tests = []
    for out in outs:
        tests.append(self_test(out, nano_checkpoint()))
        print(summary(tests[-1]), flush=True)
    print("\n".join(("", *table(tests))))
    failures = [f"{test.recipe}: {line}" for test in tests for line in test.failures]
    print("\n".join(failures), file=sys.stderr)
    sys.exit(3 if failures else 0)


if __name__ == "__main__":
    main()
