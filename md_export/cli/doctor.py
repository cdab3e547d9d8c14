"""``md-export doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from md_export.cli.shared import PATH, json_option, progress, recipe_named, say, show
from md_export.errors import MdExportError, UsageError


@click.command()
@click.argument("recipe", type=PATH, required=False)
@click.option("--checkpoint", type=PATH, help="With RECIPE: whose export to predict. Default: the nano one.")
@click.option("--canary/--no-canary", default=True, help="Convert and run a small module on each target.")
@json_option
def doctor(recipe: Path | None, checkpoint: Path | None, canary: bool, json_file: Path | None) -> None:
    """Is everything here that an export needs, and does each target work? Exit 1 if something is broken.

    Versions against the tested ones, free memory and disk (against what RECIPE takes), the GPU driver, and a canary
    through each installed target. The text after the table is for bug reports.
    """
    from md_export.diagnose.doctor.examine import examine
    from md_export.report.doctor import doctor_table, doctor_text
    from md_export.spec.recipe_file import load_recipe
    from md_export.spec.shipped_files import nano_checkpoint

    if checkpoint and not recipe:
        raise UsageError("--checkpoint is for the prediction of a RECIPE; name one, coreml-fp16 for instance")
    source = None if recipe is None else recipe_named(recipe)
    with progress(3) as report:
        wanted = None if source is None else load_recipe(source)
        found = examine(wanted, checkpoint or nano_checkpoint(), canary, report)
    text = doctor_text(found)
    if sys.stdout.isatty() and str(json_file) != "-":
        show(json_file, found, doctor_table(found))
        say(json_file, "\nFor a bug report:\n")
    else:
        show(json_file, found)
    say(json_file, text)
    if found.broken:
        names = ", ".join(item.what for item in found.broken)
        raise MdExportError(f"broken: {names}; what to do stands behind each of them above")
