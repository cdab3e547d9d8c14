"""Commands for the recipes that ship: recipe list, show and new."""

from __future__ import annotations

import re
from pathlib import Path

import click

from md_export.cli import options, shared
from md_export.cli.paths import FILE, PATH
from md_export.errors import OutputError


@click.group()
def recipe() -> None:
    """List, print or copy the recipes that ship.

    Example: md-export recipe list
    """


@recipe.command("list")
@options.json_option
def list_recipes(json_file: Path | None) -> None:
    """List the recipes that ship.

    Example: md-export recipe list

    The table shows target, stored weights, activations and thresholds.
    """
    from md_export.report.tables import recipes_table
    from md_export.spec.recipe_file import load_recipe
    from md_export.spec.shipped_files import builtin_recipes, recipe_file

    recipes = [load_recipe(recipe_file(Path(name))) for name in builtin_recipes()]
    shared.show(json_file, recipes, recipes_table(recipes))


@recipe.command()
@click.argument("name", type=PATH)
def show(name: Path) -> None:
    """Print the recipe NAME as TOML.

    Example: md-export recipe show coreml-fp16
    """
    click.echo(shared.recipe_named(name).read_text(encoding="utf-8"), nl=False)


@recipe.command()
@click.argument("name", type=PATH)
@click.option("-o", "--output", type=FILE, required=True, help="Write to this file, such as mine.toml; must not exist.")
def new(name: Path, output: Path) -> None:
    """Copy the recipe NAME to a file for editing.

    Example: md-export recipe new coreml-fp16 -o mine.toml

    The copy is named after the file. To change only a few fields, write a file with name, extends = "NAME" and these
    fields instead.
    """
    text = shared.recipe_named(name).read_text(encoding="utf-8")
    if output.exists():
        raise OutputError(f"{output} exists; name another file with -o")
    output.write_text(re.sub(r'(?m)^name = ".*"$', f'name = "{output.stem}"', text, count=1), encoding="utf-8")
    click.echo(f"{output}: a copy of {name}; use it with --recipe {output}")
