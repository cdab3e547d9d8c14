"""Installed versions against the ranges in md-export's own metadata and against those that CI ran with."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from md_export.diagnose.doctor.finding import Finding

_AREA: Final = "versions"
_PACKAGE: Final = "md-export"
# An extra that only joins others.
_JOINED: Final = "all"


@dataclass(frozen=True)
class Supported:
    """One distribution: its name, the versions allowed, the one tested (None: CI does without it), its extra."""

    name: str
    allowed: str
    tested: str | None
    extra: str | None = None


@cache
def _tested() -> dict[str, str]:
    text = (resources.files(__package__) / "tested.toml").read_text(encoding="utf-8")
    return {name: str(version) for name, version in tomllib.loads(text).items()}


def supported(lines: Iterable[str], extras: Iterable[str]) -> tuple[Supported, ...]:
    """Return one row for each distribution that is required, from requirements and extras as metadata lists them."""
    rows: dict[str, Supported] = {}
    for line in map(Requirement, lines):
        marker = line.marker
        extra = next((name for name in sorted(extras) if marker and marker.evaluate({"extra": name})), None)
        if marker is None or extra is not None:
            # The lower bound first; metadata has it last.
            allowed = ",".join(sorted(map(str, line.specifier), reverse=True))
            rows.setdefault(line.name, Supported(line.name, allowed, _tested().get(line.name), extra))
    return tuple(rows.values())


def version_findings(rows: Iterable[Supported] | None = None) -> tuple[Finding, ...]:
    """Return one finding for Python and each library; ``rows``: those of the installed md-export by default."""
    try:
        own = metadata.metadata(_PACKAGE)
        if rows is None:
            extras = [name for name in own.get_all("Provides-Extra", []) if name != _JOINED]
            rows = supported(metadata.requires(_PACKAGE) or (), extras)
    except metadata.PackageNotFoundError:
        return (Finding(_AREA, _PACKAGE, "broken", "runs, but is not installed", "pip install md-export"),)
    python = Supported("python", own["Requires-Python"], _tested()["python"])
    return (_judged(python, platform.python_version()), *(_judged(row, _installed(row.name)) for row in rows))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _judged(row: Supported, found: str | None) -> Finding:
    if found is None and row.extra is not None:
        return Finding(_AREA, row.name, "not installed", "-", f"pip install 'md-export[{row.extra}]'")
    advice = f"install Python {row.allowed}" if row.name == "python" else f"pip install '{row.name}{row.allowed}'"
    if found is None:
        return Finding(_AREA, row.name, "broken", "missing", advice)
    names = _names(found)
    if not any(SpecifierSet(row.allowed).contains(name, prereleases=True) for name in names):
        return Finding(_AREA, row.name, "broken", f"{found}, outside {row.allowed}", advice)
    if row.tested not in (None, *names):
        return Finding(_AREA, row.name, "note", f"{found}, last tested with {row.tested}")
    return Finding(_AREA, row.name, "ok", found)


def _names(found: str) -> tuple[str, ...]:
    """Return a version without its build (``2.13.0+cpu``), and without being a pre-release; none for what is none."""
    try:
        return Version(found).public, Version(found).base_version
    except InvalidVersion:
        return ()
