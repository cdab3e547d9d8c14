"""What the site adds to the pages: links that leave it, and the schema of recipes from the classes that read them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from fenced import ROOT
from md_export.spec.recipe import Recipe
from recipe_schema import PLACE, SECTIONS, rows, schema
from site_hooks import PAGES, relinked

FIELDS = {title: {name for name, *_ in (*more, *rows(kind))} for title, kind, more in SECTIONS}
TABLES = {
    "scheme": 1,
    "tolerance": 3,
    "golden": 4,
    "calibration": 5,
    "sampler": 6,
    "prompts": 7,
    "regression": 8,
    "matrix": 10,
}
SHIPPED = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize(
    ("source", "link", "site", "forge"),
    [
        ("README.md", "[a](docs/lora.md#x)", "[a](lora.md#x)", "[a](lora.md#x)"),
        ("docs/lora.md", "[a](../recipes/README.md)", "[a](recipes.md)", "[a](recipes.md)"),
        ("README.md", "![a](docs/lora.png)", "![a](lora.png)", "![a](lora.png)"),
        (
            "docs/lora.md",
            "[`a`](../md_export/errors.py#L3)",
            '<a href="../md_export/errors.py#L3">`a`</a>',
            '<a href="https://x.org/y/blob/main/md_export/errors.py#L3">`a`</a>',
        ),
        ("docs/lora.md", "[a](https://x.org) [b](#c)", "[a](https://x.org) [b](#c)", "[a](https://x.org) [b](#c)"),
        ("docs/lora.md", "```\n[a](../x.py)\n```", "```\n[a](../x.py)\n```", "```\n[a](../x.py)\n```"),
    ],
)
def test_links(source: str, link: str, site: str, forge: str) -> None:
    assert relinked(link, source, None) == site
    assert relinked(link, source, "https://x.org/y/") == forge


def test_pages_from_other_folders_are_there() -> None:
    assert all((ROOT / source).is_file() for source in PAGES)
    assert PLACE in (ROOT / "docs" / "recipe-schema.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_field_of_a_recipe_is_told(file: Path) -> None:
    titles = list(FIELDS)
    recipe = tomllib.loads(file.read_text(encoding="utf-8"))
    top = FIELDS[titles[9 if "matrix" in recipe else 0]]
    for name, value in recipe.items():
        assert name in top or name in TABLES
        for key, inner in value.items() if isinstance(value, dict) else ():
            told = FIELDS[titles[TABLES[name]]]
            assert key in told or {*inner} <= told
            for rule in inner if key == "rules" else ():
                assert {*rule} <= FIELDS[titles[2]]


def test_the_schema_is_that_of_the_classes() -> None:
    text = schema()
    assert '| `weights` | `"float32"`, `"float16"`, `"int8"`' in text
    assert "| `snr_db` | number | required | Least signal-to-noise ratio" in text
    assert "| `steps` | integer | required |" in text
    assert "optional_schemes" not in text and "schemes" not in FIELDS["Top level"]
    assert {"name", "target", "rewrites", "chunks", "loras", "extends"} <= FIELDS["Top level"]
    assert {name for name, _, default, _ in rows(Recipe) if default == "required"} == {"name", "target", "golden"}


def test_a_field_that_nobody_tells_of_stops_the_build() -> None:
    @dataclass(frozen=True)
    class Untold:
        """Has fields.

        Attributes:
            told: a number.
        """

        told: int
        secret: int

    with pytest.raises(KeyError, match="secret"):
        rows(Untold)
