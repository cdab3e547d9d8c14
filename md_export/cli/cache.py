"""Commands on what builds keep: cache list, cache prune."""

from __future__ import annotations

import time
from pathlib import Path

import click

from md_export.cli.shared import PATH, json_option, say, show
from md_export.cli.units import age, size
from md_export.errors import UsageError

cache_option = click.option(
    "--cache", type=PATH, help="Folder of the cache.  [default: $MD_EXPORT_CACHE, else the platform's]"
)


def cache_root(given: Path | None) -> Path:
    """The folder that was named, else the default one."""
    from md_export.matrix.cache import default_root

    return given or default_root()


@click.group()
def cache() -> None:
    """Look at what builds keep, and make room."""


@cache.command("list")
@cache_option
@json_option
def list_entries(cache: Path | None, json_file: Path | None) -> None:
    """List all entries, the last used first."""
    from md_export.matrix.cache import Cache
    from md_export.report.cache import cache_table

    root = cache_root(cache)
    found = sorted(Cache(root).list(), key=lambda one: one.used, reverse=True)
    show(json_file, found, cache_table(found, str(root)))


@cache.command()
@click.option("--older-than", type=age, help="Entries that were not used for so long: 30d, 12h, 2w.")
@click.option("--keep", type=size, help="Then those not used for longest, until the rest is no larger: 10G, 500M.")
@cache_option
def prune(older_than: int | None, keep: int | None, cache: Path | None) -> None:
    """Remove entries; what is lost is built again when it is needed."""
    from md_export.matrix.cache import Cache

    if older_than is None and keep is None:
        raise UsageError("say what to remove: --older-than 30d, --keep 10G, or both")
    root = cache_root(cache)
    removed = Cache(root).prune(None if older_than is None else time.time() - older_than, keep)
    size = sum(one.entry.bytes for one in removed) / 1e6
    say(None, f"{root}: {len(removed)} entries removed, {size:,.1f} MB")
