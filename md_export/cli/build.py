"""Commands that build many exports of one checkpoint: build, search, and the cache that they share."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from md_export.cli import options, shared
from md_export.cli.exports import TARGET_TITLES
from md_export.cli.paths import CHECKPOINT, EXISTING, PATH
from md_export.errors import ConversionError, ParityError, UsageError
from md_export.spec.names import ORDER

if TYPE_CHECKING:
    from md_export.engine.schedule import Failure


@click.group()
def cache() -> None:
    """List or prune the cache of builds.

    Example: md-export cache list
    """


@cache.command("list")
@options.cache_option
@options.json_option
def list_entries(cache: Path | None, json_file: Path | None) -> None:
    """List all cache entries, the last used first.

    Example: md-export cache list
    """
    from md_export.engine.cache import Cache
    from md_export.report.progress import cache_table

    root = shared.cache_root(cache)
    found = sorted(Cache(root).list(), key=lambda one: one.used, reverse=True)
    shared.show(json_file, found, cache_table(found, str(root)))


@cache.command()
@click.option("--older-than", type=options.age, help="Remove entries not used for this long: 30d, 12h, 2w.")
@click.option(
    "--keep", type=options.size, help="Remove the least recently used until the rest fits this size: 10G, 500M."
)
@options.cache_option
def prune(older_than: int | None, keep: int | None, cache: Path | None) -> None:
    """Remove old cache entries; they are built again when needed.

    Example: md-export cache prune --older-than 30d --keep 10G
    """
    from md_export.engine.cache import Cache

    if older_than is None and keep is None:
        raise UsageError("nothing to remove; give --older-than 30d, --keep 10G, or both")
    root = shared.cache_root(cache)
    removed = Cache(root).prune(None if older_than is None else time.time() - older_than, keep)
    size = sum(one.entry.bytes for one in removed) / 1e6
    shared.say(None, f"{root}: {len(removed)} entries removed, {size:,.1f} MB")


@click.command()
@click.argument("recipes", metavar="RECIPE...", type=PATH, nargs=-1, required=True)
@options.checkpoint_option
@options.calibration_option
@options.jobs_option
@click.option(
    "--max-memory",
    type=options.size,
    help="Limit the memory of all running steps together, or of each step with --dask: 8G, 500M.  "
    "[default: 3/4 of the machine's]",
)
@options.dask_option
@options.store_option
@options.cache_option
@click.option("--plan", "dry", is_flag=True, help="Print the plan and do nothing.")
@click.option("-o", "--output", type=PATH, required=True, help="Write one export per recipe into this folder.")
@options.json_option
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
    """Build the exports of many RECIPEs of one checkpoint.

    Example: md-export build coreml-fp16 tflite-int8 -o out

    A RECIPE is a build recipe, an export recipe, or the name of a recipe that ships. Every export is verified. Finished
    steps are not repeated, and a step that fails does not stop the others. After an interrupt, run the same command
    again to continue.
    """
    if jobs and dask is not None:
        raise UsageError("--jobs is for this machine, --dask for the workers of a cluster; give one of them")
    if (dask is None) != (store is None):
        raise UsageError(
            "--dask and --store go together: the workers of --dask exchange files through --store, such as "
            "s3://bucket/folder, or file:// and a folder that all machines share; give both"
        )
    from md_export.engine.build_recipe import load_recipes

    wanted = load_recipes(map(shared.recipe_named, recipes))

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
        click.echo("interrupted; finished steps are kept: run the same command again to continue", err=True)
        sys.exit(130)
    shared.show(json_file, outcome.exports, outcome_table(outcome))
    if outcome.failures:
        _raise(outcome.failures)
    if all(one.status == "up to date" for one in outcome.exports):
        shared.say(json_file, f"{output}: everything is up to date")


def _raise(failures: tuple[Failure, ...]) -> None:
    """Raise one error that names every failed step: ParityError if all failed by parity, else ConversionError."""
    first = [one for one in failures if not one.follows]
    kind = ParityError if all(isinstance(one.error, ParityError) for one in first) else ConversionError
    rest = f"; {len(failures) - len(first)} more steps need these" if len(failures) > len(first) else ""
    raise kind("; ".join(f"{one.step.label}: {one.reason}" for one in first) + rest)


ROUNDINGS = ("nearest", "mse", "gptq")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@click.option("--target", type=click.Choice(tuple(TARGET_TITLES)), required=True, help="Choose the target.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="NAME=VALUE",
    help="Require picture=34 or snr=20 (dB, at least), bytes=2.1MB or bits=4.5 (at most), score=0.98; repeatable, and "
    "all must hold.",
)
@click.option("--judge", metavar="COMMAND", help="Run this with an export's folder to print the score for score=VALUE.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), help="Round weights this way.  [default: the recipe's]")
@options.recipe_option
@click.option(
    "--component",
    "components",
    type=click.Choice(ORDER),
    multiple=True,
    help="Search only this component; repeatable.  [default: all]",
)
@click.option("--prompts", type=EXISTING, help="Measure on the prompts in this text file, one per line.")
@options.calibration_option
@click.option(
    "--directions", type=click.IntRange(min=1), help="Estimate from this many random directions.  [default: 32]"
)
@click.option("--jobs", type=click.IntRange(min=1), help="Run this many processes at a time.  [default: 1]")
@options.dask_option
@options.store_option
@options.max_memory_option
@options.cache_option
@options.no_cache_option
@click.option("--journal", type=PATH, help="Keep measurements in this file, for any budget.  [default: OUT.journal]")
@options.output_option
@options.json_option
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
    """Search the cheapest storage of each module within a budget.

    Example: md-export search --target onnx --budget picture=34 -o small

    Finds the fewest bytes at a quality, or the best quality in so many bytes. Writes the recipe, the curve of bytes
    against picture PSNR, and the verified artifacts. After an interrupt, run the same command again to continue from
    the measurements in the journal.
    """
    from md_export.spec.recipe_file import load_recipe

    if recipe_file:
        load_recipe(shared.recipe_named(recipe_file))  # a wrong one is an error before torch is imported

    from md_export.engine.request import Resources, default_jobs
    from md_export.engine.search.request import DIRECTIONS, SearchRequest, parse_budget
    from md_export.engine.search.run import search as find
    from md_export.report.plots import curve_plot, trade_off_table
    from md_export.report.progress import counting_to_stderr
    from md_export.spec.prompts import prompts_in

    if prompts and golden_dir:
        raise UsageError("--prompts and --golden both set the golden cases; give one of them")
    if jobs and dask is not None:
        raise UsageError("--jobs is for this machine, --dask for the workers of a cluster; give one of them")
    if store is not None and dask is None:
        raise UsageError("--store holds the files of --dask's workers; give both")
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
        prompts=tuple(prompts_in(prompts)) if prompts else (),
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
        click.echo("interrupted; run the same command again to continue", err=True)
        sys.exit(130)
    (output / "curve.svg").write_text(curve_plot(found), encoding="utf-8")
    shared.show(json_file, found, trade_off_table(found))
