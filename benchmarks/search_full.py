"""Search at full size: minutes, memory, the recipe, and estimates beside passes on random modules.

    python benchmarks/search_full.py [--bits 4.5] [--directions 32] [--cases 4] [--modules 20] [--jobs N]
                                     [--small] [--keep FOLDER]

Full-size MD with random weights in float32 as Core ML palettes, rounded to nearest; every other golden case is measured
on. Checkpoint and golden cases are made before the clock starts. Then md-export search, in a process of its own:
estimates of all modules in all forms, passes for the candidates that matter most to the choice, the build, executed and
verified. Last, a check that is no part of a search: passes for one form each of some random modules. Peaks are resident
memory of the searching process and all its workers, looked at ten times a second. --keep leaves everything in a folder
and goes on where it was; the clock then shows what was left.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from build_measure import Clock, Taken, golden, init
from coreml_measure import Subject
from md_export.engine.search.frontier import Candidate, Module, decibels
from md_export.engine.search.measurements import Sample, with_means
from md_export.engine.search.request import STARTS, Budget, SearchRequest, starting_recipe
from md_export.engine.search.results import TradeOff
from md_export.engine.search.run import search
from md_export.engine.search.sensitivity import Probing, list_modules, noises_of, probe_of
from md_export.system.memory import watching
from side_by_side import apart, megabytes

TARGET: Final = "coreml"
_NO_LIMIT: Final = 1 << 60


def searched(request: SearchRequest) -> tuple[Taken, TradeOff]:
    """The whole search, with lines on what is done and since when."""
    clock = Clock()

    def tell(text: str) -> None:
        print(f"{clock.taken(0).seconds / 60:6.1f} min  {text}", flush=True)

    with watching(os.getpid(), _NO_LIMIT) as watch:
        found = search(request, lambda done, total, text: tell(f"{done}/{total} {text}"), tell)
    return clock.taken(watch.peak_bytes), found


def compared(request: SearchRequest, cases: Path, count: int) -> list[tuple[Module, Candidate, float]]:
    """Random modules, a random form of each with the estimates of all directions, and the noise by passes."""
    recipe = starting_recipe(request)
    on = Probing(request.checkpoint, recipe, recipe.components, cases, 2, cases, STARTS[TARGET].forms)
    assert request.journal is not None
    modules = with_means(list_modules(on), samples_in(request.journal))
    drawn = random.Random(0)  # noqa: S311 (nothing is secret)
    found = []
    for module in drawn.sample(modules, count):
        one = drawn.choice([one for one in module.candidates if not one.form.is_float])
        found.append((module, one, noises_of(probe_of(on), module.component, module.path, one.form)[0]))
        print(row(*found[-1]), flush=True)
    return found


def row(module: Module, one: Candidate, noise: float) -> str:
    path = f"{module.component} {module.path}"
    return f"| {path} | {one.form.label} | {decibels(one.noise):.1f} | {decibels(noise):.1f} |"


def samples_in(journal: Path) -> list[Sample]:
    found = []
    for line in journal.read_bytes().splitlines():
        try:
            found.append(TypeAdapter(Sample).validate_json(line))
        except ValidationError:
            continue
    return found


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values))


def main(asked: argparse.Namespace, folder: Path) -> None:
    """Print what the search tells, then both results."""
    checkpoint, cases, out = folder / "checkpoint", folder / f"golden-{asked.cases}", folder / "found"
    apart(init, Subject("unet", small=asked.small), checkpoint)
    if not cases.exists():
        apart(golden, checkpoint, cases, TARGET, asked.cases)
    request = SearchRequest(
        checkpoint,
        TARGET,
        Budget(bits=asked.bits),
        out,
        rounding="nearest",
        golden=cases,
        directions=asked.directions,
        jobs=asked.jobs,
        journal=folder / "journal",
    )
    if not out.exists():
        taken, found = apart(searched, request)
        print(
            f"\n{taken.seconds / 60:.1f} min, {taken.cpu_seconds / 60:.1f} min of processor, peak "
            f"{megabytes(taken.peak_bytes)} MB; {found.chosen.bits:.2f} bits a weight, "
            f"{found.built['chosen'].bytes:,} bytes; picture predicted {found.chosen.picture_db:.1f} dB, built "
            f"{found.built['chosen'].picture_db:.1f} dB\n",
            flush=True,
        )
    print("| module | form | estimate, dB of picture | pass |\n|---|---|---:|---:|", flush=True)
    made = apart(compared, request, cases, asked.modules)
    estimates, passes = [one.noise for _, one, _ in made], [noise for _, _, noise in made]
    errors = [decibels(passed) - decibels(noise) for noise, passed in zip(estimates, passes, strict=True)]
    correlation = np.corrcoef(ranks(estimates), ranks(passes))[0, 1]
    print(f"\nrank correlation {correlation:.3f}; errors {np.mean(errors):+.2f} ± {np.std(errors):.2f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=float, default=4.5)
    parser.add_argument("--directions", type=int, default=32)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--modules", type=int, default=20)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        main(given, given.keep or Path(scratch))
