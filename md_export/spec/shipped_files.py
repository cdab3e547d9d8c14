"""Where the files that ship beside the code lie: in the wheel under ``_data``, in a checkout at its root."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_ROOT = _PACKAGE / "_data" if (_PACKAGE / "_data").is_dir() else _PACKAGE.parent


def nano_checkpoint() -> Path:
    """The small trained checkpoint that every command uses when none is named."""
    return _ROOT / "golden" / "nano"


def builtin_recipe(target: str, precision: str) -> Path:
    """The recipe that ``md-export <target> --<precision>`` stands for."""
    return _ROOT / "recipes" / f"{target}-{precision}.toml"


def builtin_recipes() -> tuple[str, ...]:
    """Names of the recipes that ship, ``<target>-<precision>``."""
    return tuple(sorted(file.stem for file in (_ROOT / "recipes").glob("*-*.toml")))


def recipe_file(given: Path) -> Path:
    """The file that ``--recipe`` means: a path, or the name of a recipe that ships where no such file is here."""
    builtin = _ROOT / "recipes" / f"{given}.toml"
    return builtin if not given.exists() and str(given) in builtin_recipes() else given
