"""Installed versions against the tested ones."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib import metadata

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from md_export.doctor.finding import Finding
from md_export.doctor.tested import PYTHON, TESTED, Tested

_AREA = "versions"


def version_of(name: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_findings(
    table: Sequence[Tested] = TESTED, installed: Callable[[str], str | None] = version_of
) -> tuple[Finding, ...]:
    """One finding for Python and each library."""
    return (_judged(PYTHON, platform.python_version()), *(_judged(row, installed(row.name)) for row in table))


def _judged(row: Tested, found: str | None) -> Finding:
    if found is None:
        if row.extra is None:
            return Finding(_AREA, row.name, "broken", "missing", f"pip install '{row.name}{row.allowed}'")
        return Finding(_AREA, row.name, "not installed", "-", f"pip install 'md-export[{row.extra}]'")
    if not _allows(row.allowed, found):
        advice = f"install Python {row.allowed}" if row is PYTHON else f"pip install '{row.name}{row.allowed}'"
        return Finding(_AREA, row.name, "broken", f"{found}, outside {row.allowed}", advice)
    if row.version not in (None, *_names(found)):
        return Finding(_AREA, row.name, "note", f"{found}, last tested with {row.version}")
    return Finding(_AREA, row.name, "ok", found)


def _allows(allowed: str, found: str) -> bool:
    """Whether a version is in the range; builds that call themselves otherwise (``2.13.0+cpu``) count as their base."""
    try:
        return any(SpecifierSet(allowed).contains(name, prereleases=True) for name in _names(found))
    except (InvalidVersion, InvalidSpecifier):
        return False


def _names(found: str) -> tuple[str, str]:
    """A version without its build, and without being a pre-release."""
    return Version(found).public, Version(found).base_version
