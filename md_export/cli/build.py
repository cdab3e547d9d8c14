"""Commands that build many exports of one checkpoint, and that list and prune what builds keep."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from md_export.cli.shared import PATH, age, cache_option, cache_root, checkpoint_or_nano, json_option, say, show, size
from md_export.errors import UsageError

if TYPE_CHECKING:
    from md_export.engine.scheduler import Failure


@click.group()
def cache() -> None:
    """Look at what builds keep, and make room."""


@cache.command("list")
@cache_option
@json_option
def list_entries(cache: Path | None, json_file: Path | None) -> None:
    """List all entries, the last used first."""
    from md_export.engine.cache import Cache
    from md_export.report.progress import cache_table

    root = cache_root(cache)
    found = sorted(Cache(root).list(), key=lambda one: one.used, reverse=True)
    show(json_file, found, cache_table(found, str(root)))


@cache.command()
@click.option("--older-than", type=age, help="Entries that were not used for so long: 30d, 12h, 2w.")
@click.option("--keep", type=size, help="Then those not used for longest, until the rest is no larger: 10G, 500M.")
@cache_option
def prune(older_than: int | None, keep: int | None, cache: Path | None) -> None:
    """Remove entries; what is lost is built again when it is needed."""
    from md_export.engine.cache import Cache

    if older_than is None and keep is None:
        raise UsageError("say what to remove: --older-than 30d, --keep 10G, or both")
    root = cache_root(cache)
    removed = Cache(root).prune(None if older_than is None else time.time() - older_than, keep)
    size = sum(one.entry.bytes for one in removed) / 1e6
    say(None, f"{root}: {len(removed)} entries removed, {size:,.1f} MB")


@click.command()
@click.argument("recipes", metavar="RECIPE...", type=PATH, nargs=-1, required=True)
@click.option("--checkpoint", type=PATH, help="The checkpoint's folder.  [default: the nano one]")
@click.option("--golden", "golden_dir", type=PATH, help="Golden cases to judge by.")
@click.option("--jobs", type=click.IntRange(min=1), help="Steps at a time.  [default: one for two cores]")
@click.option(
    "--max-memory",
    type=size,
    help="All steps that run at a time together, or each of --dask: 8G, 500M.  [default: 3/4 of the machine's]",
)
@click.option("--dask", metavar="ADDRESS", help="Run the steps on the workers of this Dask scheduler.")
@click.option("--store", metavar="URL", help="With --dask: where all machines find and leave files: s3://…, file://…")
@cache_option
@click.option("--plan", "dry", is_flag=True, help="Show the plan and do nothing.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder of exports, one for each recipe by its name.")
@json_option
def build(
    recipes: tuple[Path, ...],
    checkpoint: Path | None,
    golden_dir: Path | None,
    jobs: int | None,
    max_memory: int | None,
    dask: str | None,
    store: str | None,
    cache: Path | None,
    dry: bool,
    output: Path,
    json_file: Path | None,
) -> None:
    """Build every export that RECIPEs ask for, verified: build recipes, export recipes, or names of those that ship.

    What was built before is not built again. A step that fails does not stop the others. Interrupted or killed, the
    same command goes on where it was.
    """
    from md_export.engine.export import build as run
    from md_export.engine.request import BuildRequest, default_jobs, load_recipes
    from md_export.errors import UsageError
    from md_export.report.progress import building_to_stderr, outcome_table

    if jobs and dask is not None:
        raise UsageError("--jobs is for this machine, --dask for the workers of a cluster; give one of them")
    if (dask is None) != (store is None):
        raise UsageError(
            "--dask and --store go together: the steps run on the workers of the one, which find and leave files in "
            "the other, such as s3://bucket/folder or file:// and a folder that all machines share; give both"
        )
    request = BuildRequest(
        recipes=load_recipes(recipes),
        checkpoint=checkpoint_or_nano(checkpoint),
        out=output,
        cache=cache_root(cache),
        golden=golden_dir,
        jobs=jobs or default_jobs(),
        most_bytes=max_memory,
        dask=dask,
        store=store,
    )
    try:
        with building_to_stderr() as listener:
            outcome = run(request, listener, dry)
    except KeyboardInterrupt:
        click.echo("interrupted; what was finished is kept: run the same command again to go on", err=True)
        sys.exit(130)
    show(json_file, outcome.exports, outcome_table(outcome))
    if outcome.failures:
        _raise(outcome.failures)
    if all(one.status == "up to date" for one in outcome.exports):
        say(json_file, f"{output}: everything is up to date")


def _raise(failures: tuple[Failure, ...]) -> None:
    """One error that names all that went wrong; a parity failure where it is nothing else."""
    from md_export.errors import ConversionError, ParityError

    first = [one for one in failures if not one.follows]
    kind = ParityError if all(isinstance(one.error, ParityError) for one in first) else ConversionError
    rest = f"; {len(failures) - len(first)} more steps need these" if len(failures) > len(first) else ""
    raise kind("; ".join(f"{one.step.label}: {one.reason}" for one in first) + rest)
