"""The command that looks for the smallest artifact of a quality, or the best of a size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from md_export.cli.exports import TARGET_TITLES
from md_export.cli.shared import (
    PATH,
    cache_option,
    cache_root,
    checkpoint_or_nano,
    json_option,
    max_memory_option,
    no_cache_option,
    recipe_named,
    show,
)
from md_export.errors import UsageError
from md_export.spec.names import COMPONENT_NAMES

ROUNDINGS = ("nearest", "mse", "gptq")


@click.command()
@click.argument("checkpoint", type=PATH, required=False)
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
@click.option(
    "--component", "components", type=click.Choice(COMPONENT_NAMES), multiple=True, help="Choose for this one only."
)
@click.option("--prompts", type=PATH, help="Text file with one prompt a line, to measure on.")
@click.option("--golden", "golden_dir", type=PATH, help="Golden cases to measure on and to be judged by.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes at a time.  [default: one a core]")
@click.option("--dask", metavar="ADDRESS", help="Measure on the workers of this Dask scheduler.")
@click.option("--store", metavar="URL", help="With --dask: build there, too; as for build.")
@max_memory_option
@cache_option
@no_cache_option
@click.option("--journal", type=PATH, help="File of measurements; serves every budget.  [default: OUT.journal]")
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write; must not exist.")
@json_option
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
    from md_export.engine.request import Resources, default_jobs
    from md_export.engine.search.budget import parse_budget
    from md_export.engine.search.run import search as find
    from md_export.engine.search.starting import SearchRequest
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
        checkpoint=checkpoint_or_nano(checkpoint),
        target=target,
        budget=parse_budget(budgets, judge),
        out=output,
        recipe=recipe_named(recipe_file) if recipe_file else None,
        judge=judge,
        rounding=rounding,
        components=components,
        golden=golden_dir,
        prompts=tuple(read_prompts(prompts)) if prompts else (),
        jobs=jobs,
        dask=dask,
        journal=journal,
        resources=Resources(
            cache_root(cache) if keep else None, jobs or default_jobs(), max_memory, dask if store else None, store
        ),
    )
    try:
        with counting_to_stderr("modules measured") as count:
            found = find(request, count, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    (output / "curve.svg").write_text(curve_plot(found), encoding="utf-8")
    show(json_file, found, trade_off_table(found))
