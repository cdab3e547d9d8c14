"""What the tests of ``examples/`` share: an export of many steps, md-export's picture, and compilers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray

from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts
from md_export.models.sampling.generate import draw_noise
from md_export.models.sampling.pictures import to_bytes
from md_export.models.sampling.sampler import Sampler
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Float32

EXAMPLES: Final = Path(__file__).parents[1] / "examples"
PROMPT: Final = "A small blue star at the top, night background"
SEED: Final = 3
# An argument of the stand-in programs: no negative prompt is given.
NOT_GIVEN: Final = "-"


def export_of_many_steps(target: str, nano: Path, out: Path) -> None:
    """Write an export with guidance, a negative prompt, and a sampler that adds noise after a step."""
    recipe = load_recipe(builtin_recipe(target, "fp16-steps"))
    plan = SamplerPlan(2, "euler_ancestral", 3.0, cases=1, negative="a red circle")
    export(replace(recipe, sampler=plan), nano, out)


@dataclass(frozen=True)
class Wanted:
    """What an app draws, ``[n, C, h, w]``, and the bytes ``[H, W, 3]`` that it then makes of ``PROMPT``."""

    draws: Float32
    pixels: NDArray[np.int64]


def wanted(folder: Path, negative: str) -> Wanted:
    """Return the picture of an export by md-export."""
    manifest = read_manifest(folder)
    fresh = Sampler(manifest.steps or manifest.one_step).fresh_noise
    _, channels, height, width = manifest.entry_for("unet").inputs[0].shape
    draws = draw_noise(SEED, (1, channels, height, width), 1 + fresh)
    given = None if negative == NOT_GIVEN else negative
    (picture,) = pictures_of_artifacts(folder, [(PROMPT, SEED)], negative=given)
    return Wanted(draws, to_bytes(picture).astype(np.int64))


def apart(made: NDArray[np.int64], ours: Wanted) -> int:
    """Return the largest difference of two pictures in levels of 255."""
    return int(np.abs(made - ours.pixels).max())


def program(variable: str, name: str, kept: Path | None = None, required: bool = False) -> str:
    """Return the path of a compiler: ``variable``, the PATH, or ``kept``. Skip the test without one, or fail it."""
    found = os.environ.get(variable) or shutil.which(name)
    if found is None and kept is not None and kept.is_file():
        return str(kept)
    if found is None:
        (pytest.fail if required else pytest.skip)(f"put {name} on the PATH, or name it in {variable}")
    return found


def kotlinc() -> str:
    """Return Kotlin's compiler; ``.ci/run`` sets the variable where it got one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = cache / "md-export" / "kotlin-compiler" / "bin" / "kotlinc"
    return program("KOTLINC", "kotlinc", kept, bool(os.environ.get("MD_EXPORT_REQUIRE_KOTLIN")))


def run(command: Sequence[str | Path], where: Path, environment: Mapping[str, str] | None = None) -> str:
    """Return what a program prints; its errors fail the test."""
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=where,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    return ran.stdout
