"""Free memory and disk, and whether they are enough."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from md_export.checkpoint import build_on_meta, open_checkpoint
from md_export.diagnose.doctor.finding import Finding
from md_export.engine.cache import default_root
from md_export.engine.costs import artifact_cost, export_cost
from md_export.models.families import component_of
from md_export.spec.recipe import Recipe

_FLOAT32 = 4


@dataclass(frozen=True)
class Need:
    """Memory and disk that one export needs.

    Attributes:
        memory: most bytes resident at once.
        step: the step that takes them.
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
    area = (checkpoint.at(recipe.size).config.image_size / checkpoint.config.image_size) ** 2
    peaks = {
        f"{recipe.target} {name}": artifact_cost(recipe.target, name, recipe.schemes[name], size, area).peak_bytes
        for name, size in weights.items()
    }
    cases = len(recipe.golden.prompts) * len(recipe.golden.seeds)
    peaks["verifying"] = export_cost(recipe.target, sum(weights.values()), cases, area).peak_bytes
    step = max(peaks, key=lambda name: peaks[name])
    stored = sum(checkpoint.component_bytes(name) for name in recipe.components)
    # OUT: what an export asks for before it starts. Temporary: a converter's float file and its quantized successor.
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
    """``available``: bytes without swapping; ``group``: bytes left in the container, None where it has no limit."""

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
            most = int((folder / limit).read_text())  # "max" is no number: no limit
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            if most < 1 << 60:  # version 1 spells "no limit" so
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
