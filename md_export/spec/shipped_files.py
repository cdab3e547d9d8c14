"""Paths of the files that ship with the code: under ``_data`` in the wheel, at the root of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_ROOT = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent


def nano_checkpoint() -> Path:
    """Return the folder of nano, the small trained checkpoint that commands use by default."""
    return _ROOT / "golden" / "nano"


def builtin_recipe(target: str, precision: str) -> Path:
    """Return the path of the recipe that ``md-export <target> --<precision>`` uses."""
    return _ROOT / "recipes" / f"{target}-{precision}.toml"


def builtin_recipes() -> tuple[str, ...]:
    """Return the names of the shipped recipes, ``<target>-<precision>``."""
    return tuple(sorted(file.stem for file in (_ROOT / "recipes").glob("*-*.toml")))


def recipe_file(given: Path) -> Path:
    """Return the file for ``--recipe``: the path if it exists, else the shipped recipe of that name."""
    builtin = _ROOT / "recipes" / f"{given}.toml"
    return builtin if not given.exists() and str(given) in builtin_recipes() else given
