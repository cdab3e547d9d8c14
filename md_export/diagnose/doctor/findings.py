"""Findings on this machine: library versions against the supported ones, free memory and disk against the need."""

from __future__ import annotations

import platform
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Final, Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from md_export.checkpoint import build_on_meta, open_checkpoint
from md_export.engine.cache import default_root
from md_export.engine.costs import artifact_cost, export_cost
from md_export.engine.dependencies import area_of
from md_export.models.families import component_of
from md_export.spec.recipe import Recipe

Verdict = Literal["ok", "note", "not installed", "broken"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        area: versions, disk, memory, gpu or canary.
        what: the library, folder or target that was checked.
        verdict: ``broken`` must be fixed; a ``note`` works, but differs from the tested setup.
        found: the figure, in words.
        advice: what to do; empty if nothing is wrong.
    """

    area: str
    what: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; ``system`` is the operating system, processor and number of cores."""

    md_export: str
    system: str
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings that must be fixed."""
        return tuple(finding for finding in self.findings if finding.verdict == "broken")


_AREA: Final = "versions"
_PACKAGE: Final = "md-export"
# An extra that only combines other extras.
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
    """Return a version without its build (``+cpu``), and without its pre-release mark; empty if it cannot be parsed."""
    try:
        return Version(found).public, Version(found).base_version
    except InvalidVersion:
        return ()


_FLOAT32 = 4


@dataclass(frozen=True)
class Need:
    """Memory and disk that one export needs.

    Attributes:
        memory: peak of resident bytes.
        step: the step with this peak.
        out, temp, cache: bytes on the disks of OUT, of temporary files, and of the cache that builds use.
    """

    memory: int
    step: str
    out: int
    temp: int
    cache: int


def need_of(recipe: Recipe, checkpoint_dir: Path) -> Need:
    """Predict the need of an export; nothing is converted.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be opened.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    recipe, config = recipe.completed(checkpoint.components), checkpoint.config
    weights = {
        name: _FLOAT32 * sum(p.numel() for p in build_on_meta(component_of(config, name), config).parameters())
        for name in recipe.components
    }
    area = area_of(checkpoint, recipe)
    peaks = {
        f"{recipe.target} {name}": artifact_cost(recipe.target, name, recipe.schemes[name], size, area).peak_bytes
        for name, size in weights.items()
    }
    cases = len(recipe.golden.prompts) * len(recipe.golden.seeds)
    peaks["verifying"] = export_cost(recipe.target, sum(weights.values()), cases, area).peak_bytes
    step = max(peaks, key=lambda name: peaks[name])
    stored = sum(checkpoint.component_bytes(name) for name in recipe.components)
    # OUT: the free space that an export requires first. Temporary: a converter's float file and the quantized one.
    return Need(peaks[step], step, 3 * stored, 2 * max(weights.values()), stored)


# Below this, even the libraries of one worker do not fit.
_LEAST_MEMORY = 1_500_000_000
_LEAST_DISK = 500_000_000


@dataclass(frozen=True)
class Place:
    """A folder that files are written to: its purpose, path, free bytes, and the number of its disk."""

    what: str
    path: Path
    free: int
    disk: int


@dataclass(frozen=True)
class Memory:
    """Free memory: ``available`` bytes without swapping; ``group``: bytes left in the container, or None."""

    available: int
    group: int | None

    @property
    def free(self) -> int:
        """The smaller of the two."""
        return self.available if self.group is None else min(self.available, self.group)


def memory_here() -> Memory:
    """Return the memory of this machine and of the control group of this process."""
    return Memory(int(psutil.virtual_memory().available), group_room(Path("/")))


def places_here() -> tuple[Place, ...]:
    """Return the current folder, the folder for temporary files, and the cache."""
    folders = {"this folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir()), "cache": default_root()}
    return tuple(_place(what, path) for what, path in folders.items())


def _place(what: str, path: Path) -> Place:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return Place(what, path, shutil.disk_usage(existing).free, existing.stat().st_dev)


def group_room(root: Path) -> int | None:
    """Return the bytes left in the control group of this process and those above it; None without a limit.

    Both versions of Linux' control groups are read; pages of files that it would drop count as free.
    """
    rooms = [room for folder in _groups(root) if (room := _room(folder)) is not None]
    return min(rooms, default=None)


def _groups(root: Path) -> Iterator[Path]:
    top = root / "sys/fs/cgroup"
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base = top / controllers
            own = base / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder == base or base in folder.parents)


def _room(folder: Path) -> int | None:
    for limit, used, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError, KeyError):
            most = int((folder / limit).read_text())  # "max" is not a number: no limit
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if most < 1 << 60:  # version 1 writes a larger number for no limit
                return max(0, most - int((folder / used).read_text()) + int(stat[dropped]))
    return None


def memory_finding(memory: Memory, need: Need | None) -> Finding:
    """Compare free memory with the need of the recipe, or of any export."""
    wanted, why = (_LEAST_MEMORY, "any export") if need is None else (need.memory, need.step)
    found = f"{_gb(memory.available)} available"
    if memory.group is not None:
        found += f", {_gb(memory.group)} left in this container"
    found += f"; {why} takes {'at least' if need is None else 'about'} {_gb(wanted)}"
    if memory.free >= wanted:
        return Finding("memory", "memory", "ok", found)
    advice = "close other programs, raise the container's limit, or export one --component at a time"
    return Finding("memory", "memory", "broken", found, advice)


def disk_findings(places: Sequence[Place], need: Need | None) -> tuple[Finding, ...]:
    """Compare the free room of each disk with the bytes that the recipe writes to all folders on it."""
    wanted = [_LEAST_DISK] * len(places) if need is None else [need.out, need.temp, need.cache]
    findings = []
    for place in places:
        total = sum(size for size, other in zip(wanted, places, strict=True) if other.disk == place.disk)
        found = f"{place.path}: {_gb(place.free)} free; {_gb(total)} needed on this disk"
        if place.free >= total:
            findings.append(Finding("disk", place.what, "ok", found))
        else:
            advice = "free some space, or choose another disk: -o, TMPDIR, MD_EXPORT_CACHE"
            findings.append(Finding("disk", place.what, "broken", found, advice))
    return tuple(findings)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
