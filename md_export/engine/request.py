"""Build requests, and the resources that the engine may use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from md_export.engine.cache import default_root
from md_export.engine.plan import LoraInput
from md_export.spec.loras import split_lora
from md_export.spec.recipe import Recipe
from md_export.system.workspace import workspace


@dataclass(frozen=True)
class BuildRequest:
    """One call of ``md-export build``.

    Attributes:
        checkpoint: folder of the checkpoint.
        out: folder that receives one export per recipe, named after the recipe.
        only: name of the export's folder if there is exactly one recipe; the folder must not exist. An export that
            fails verification is kept as ``<only>.rejected``. None: an existing export is replaced if it differs.
        golden: folder of golden cases; None: the checkpoint's cases, or cases made from the recipes' prompts.
        cache: folder of the cache.
        jobs: number of steps that run at the same time.
        most_bytes: memory in bytes for all running steps together; None: three quarters of the installed memory.
        dask: address of a Dask scheduler; its workers run the steps, one step per worker, ``most_bytes`` for each.
        store: required with ``dask``: URL of a folder that this machine and all workers can read and write.
    """

    recipes: tuple[Recipe, ...]
    checkpoint: Path
    out: Path
    cache: Path
    golden: Path | None = None
    jobs: int = 1
    most_bytes: int | None = None
    dask: str | None = None
    store: str | None = None
    only: str | None = None

    @property
    def rejected(self) -> Path | None:
        """Folder for an export that fails verification; None without ``only``."""
        return None if self.only is None else self.out / f"{self.only}.rejected"


def default_jobs() -> int:
    """Return the default number of concurrent steps: one per two cores, at least one."""
    return max(1, (os.cpu_count() or 1) // 2)


@dataclass(frozen=True)
class Resources:
    """Resources that the engine may use; the fields are those of :class:`BuildRequest`.

    Attributes:
        cache: folder of the cache; None: a temporary cache that is removed at the end.
    """

    cache: Path | None = field(default_factory=default_root)
    jobs: int = field(default_factory=default_jobs)
    most_bytes: int | None = None
    dask: str | None = None
    store: str | None = None

    @contextmanager
    def request(
        self, recipe: Recipe, checkpoint: Path, out: Path, golden: Path | None, only: str | None = None
    ) -> Iterator[BuildRequest]:
        """Yield a request with one recipe; a temporary cache is removed when the context ends."""
        with nullcontext(self.cache) if self.cache else workspace(out) as cache:
            limits = self.jobs, self.most_bytes, self.dask, self.store
            yield BuildRequest((recipe,), checkpoint, out, cache, golden, *limits, only)


def lora_files(recipes: Iterable[Recipe]) -> dict[str, Path]:
    """Return the LoRA files of the recipes, by the names that steps use for them."""
    files = dict.fromkeys(Path(split_lora(text)[0]) for recipe in recipes for text in (*recipe.loras, *recipe.styles))
    return {f"lora {index}": file for index, file in enumerate(files)}


def lora_inputs(loras: Iterable[str], files: dict[str, Path]) -> tuple[LoraInput, ...]:
    """Return the LoRAs of a recipe as (name, suffix) pairs for a step's request."""
    names = {str(file): name for name, file in files.items()}
    found = [(split_lora(text)[0], text) for text in loras]
    return tuple((names[str(Path(file))], text[len(file) :]) for file, text in found)
