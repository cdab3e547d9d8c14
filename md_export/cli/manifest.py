"""The command that holds files against their manifest."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, json_option, say, show
from md_export.errors import ArtifactError


@click.group()
def manifest() -> None:
    """Look at what exports say of themselves."""


@manifest.command()
@click.argument("out", type=PATH)
@json_option
def check(out: Path, json_file: Path | None) -> None:
    """Hold every file of an export, or of a folder of exports, against the hash in its manifest; exit 1 if one differs.

    Needs no runtime and no network; the functions of a joined export are taken out one by one, by coremltools.
    """
    from md_export.joining import check_functions
    from md_export.manifest import JOIN
    from md_export.matrix.check import check_exports

    found = check_functions(out) if (out / JOIN).is_file() else check_exports(out)
    show(json_file, found)
    for one in found:
        say(json_file, f"{one.folder}: {one.files} files checked, {len(one.differences)} differ")
        for name in one.unlisted:
            say(json_file, f"{one.folder}: {name} is not in the manifest")
    wrong = [f"{one.folder}: {text}" for one in found for text in one.differences]
    if wrong:
        raise ArtifactError("; ".join(wrong))
