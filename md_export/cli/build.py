"""Commands that build many exports of one checkpoint: build, search, and the cache that they share."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from md_export.cli import shared
from md_export.cli.exports import TARGET_TITLES
from md_export.cli.paths import CHECKPOINT, EXISTING, GOLDEN, PATH
from md_export.errors import ConversionError, ParityError, UsageError
from md_export.spec.names import ORDER

if TYPE_CHECKING:
    from md_export.engine.schedule import Failure


@click.group()
def cache() -> None:
    """Look at what builds keep, and make room."""


@cache.command("list")
@shared.cache_option
@shared.json_option
def list_entries(cache: Path | None, json_file: Path | None) -> None:
    """List all entries, the last used first."""
    from md_export.engine.cache import Cache
    from md_export.report.progress import cache_table

    root = shared.cache_root(cache)
    found = sorted(Cache(root).list(), key=lambda one: one.used, reverse=True)
    shared.show(json_file, found, cache_table(found, str(root)))


@cache.command()
@click.option("--older-than", type=shared.age, help="Entries that were not used for so long: 30d, 12h, 2w.")
@click.option(
    "--keep", type=shared.size, help="Then those not used for longest, until the rest is no larger: 10G, 500M."
)
@shared.cache_option
def prune(older_than: int | None, keep: int | None, cache: Path | None) -> None:
    """Remove entries; what is lost is built again when it is needed."""
    from md_export.engine.cache import Cache

    if older_than is None and keep is None:
        raise UsageError("say what to remove: --older-than 30d, --keep 10G, or both")
    root = shared.cache_root(cache)
    removed = Cache(root).prune(None if older_than is None else time.time() - older_than, keep)
    size = sum(one.entry.bytes for one in removed) / 1e6
    shared.say(None, f"{root}: {len(removed)} entries removed, {size:,.1f} MB")


@click.command()
@click.argument("recipes", metavar="RECIPE...", type=PATH, nargs=-1, required=True)
@click.option("--checkpoint", type=CHECKPOINT, help="The checkpoint's folder.  [default: the nano one]")
@click.option("--golden", "golden_dir", type=GOLDEN, help="Golden cases to judge by.")
@shared.jobs_option
@click.option(
    "--max-memory",
    type=shared.size,
    help="All steps that run at a time together, or each of --dask: 8G, 500M.  [default: 3/4 of the machine's]",
)
@click.option("--dask", metavar="ADDRESS", help="Run the steps on the workers of this Dask scheduler.")
@click.option("--store", metavar="URL", help="With --dask: where all machines find and leave files: s3://…, file://…")
@shared.cache_option
@click.option("--plan", "dry", is_flag=True, help="Show the plan and do nothing.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder of exports, one for each recipe by its name.")
@shared.json_option
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
    if jobs and dask is not None:
        raise UsageError("--jobs is for this machine, --dask for the workers of a cluster; give one of them")
    if (dask is None) != (store is None):
        raise UsageError(
            "--dask and --store go together: the steps run on the workers of the one, which find and leave files in "
            "the other, such as s3://bucket/folder or file:// and a folder that all machines share; give both"
        )
    from md_export.engine.build_recipe import load_recipes

    wanted = load_recipes(recipes)

    from md_export.engine.export import build as run
    from md_export.engine.request import BuildRequest, default_jobs
    from md_export.report.progress import building_to_stderr, outcome_table

    request = BuildRequest(
        recipes=wanted,
        checkpoint=shared.checkpoint_or_nano(checkpoint),
        out=output,
        cache=shared.cache_root(cache),
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
    shared.show(json_file, outcome.exports, outcome_table(outcome))
    if outcome.failures:
        _raise(outcome.failures)
    if all(one.status == "up to date" for one in outcome.exports):
        shared.say(json_file, f"{output}: everything is up to date")


def _raise(failures: tuple[Failure, ...]) -> None:
    """One error that names all that went wrong; a parity failure where it is nothing else."""
    first = [one for one in failures if not one.follows]
    kind = ParityError if all(isinstance(one.error, ParityError) for one in first) else ConversionError
    rest = f"; {len(failures) - len(first)} more steps need these" if len(failures) > len(first) else ""
    raise kind("; ".join(f"{one.step.label}: {one.reason}" for one in first) + rest)


ROUNDINGS = ("nearest", "mse", "gptq")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@click.option("--target", type=click.Choice(tuple(TARGET_TITLES)), required=True)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="NAME=VALUE",
    help="picture=34 or snr=20 (at least, dB), bytes=2.1MB or bits=4.5 (at most), score=0.98. Several must all hold.",
)
@click.option("--judge", metavar="COMMAND", help="Called with an export's folder; prints the score for score=VALUE.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), help="Instead of the recipe's.")
@click.option("--recipe", "recipe_file", type=PATH, help="A recipe's file or name to start from.")
@click.option("--component", "components", type=click.Choice(ORDER), multiple=True, help="Choose for this one only.")
@click.option("--prompts", type=EXISTING, help="Text file with one prompt a line, to measure on.")
@click.option("--golden", "golden_dir", type=GOLDEN, help="Golden cases to measure on and to be judged by.")
@click.option("--directions", type=click.IntRange(min=1), help="Random directions to estimate from.  [default: 32]")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at a time.  [default: one with all cores]")
@click.option("--dask", metavar="ADDRESS", help="Measure on the workers of this Dask scheduler.")
@click.option("--store", metavar="URL", help="With --dask: build there, too; as for build.")
@shared.max_memory_option
@shared.cache_option
@shared.no_cache_option
@click.option("--journal", type=PATH, help="File of measurements; serves every budget.  [default: OUT.journal]")
@shared.output_option
@shared.json_option
def search(
    checkpoint: Path | None,
    target: str,
    budgets: tuple[str, ...],
    judge: str | None,
    rounding: Literal["nearest", "mse", "gptq"] | None,
    recipe_file: Path | None,
    components: tuple[str, ...],
    prompts: Path | None,
    golden_dir: Path | None,
    directions: int | None,
    jobs: int | None,
    dask: str | None,
    store: str | None,
    max_memory: int | None,
    cache: Path | None,
    keep: bool,
    journal: Path | None,
    output: Path,
    json_file: Path | None,
) -> None:
    """Find how to store each module of CHECKPOINT: the fewest bytes at a quality, or the best quality in so many bytes.

    Writes the recipe, the curve of bytes against picture PSNR, and the artifacts, verified. What was measured is kept
    until then: run the same command again to go on where it was stopped.
    """
    from md_export.spec.recipe_file import load_recipe

    if recipe_file:
        load_recipe(shared.recipe_named(recipe_file))  # a wrong one is an error before torch is imported

    from md_export.engine.request import Resources, default_jobs
    from md_export.engine.search.request import DIRECTIONS, SearchRequest, parse_budget
    from md_export.engine.search.run import search as find
    from md_export.parity.golden.folder import read_prompts
    from md_export.report.plots import curve_plot, trade_off_table
    from md_export.report.progress import counting_to_stderr

    if prompts and golden_dir:
        raise UsageError("--prompts makes golden cases and --golden brings them; give one of them")
    if jobs and dask is not None:
        raise UsageError("--jobs is for this machine, --dask for the workers of a cluster; give one of them")
    if store is not None and dask is None:
        raise UsageError("--store is where the workers of --dask find and leave files; give both")
    request = SearchRequest(
        checkpoint=shared.checkpoint_or_nano(checkpoint),
        target=target,
        budget=parse_budget(budgets, judge),
        out=output,
        recipe=shared.recipe_named(recipe_file) if recipe_file else None,
        judge=judge,
        rounding=rounding,
        components=components,
        golden=golden_dir,
        prompts=tuple(read_prompts(prompts)) if prompts else (),
        directions=directions or DIRECTIONS,
        jobs=jobs,
        dask=dask,
        journal=journal,
        resources=Resources(
            shared.cache_root(cache) if keep else None,
            jobs or default_jobs(),
            max_memory,
            dask if store else None,
            store,
        ),
    )
    try:
        with counting_to_stderr("measurements") as count:
            found = find(request, count, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    (output / "curve.svg").write_text(curve_plot(found), encoding="utf-8")
    shared.show(json_file, found, trade_off_table(found))
