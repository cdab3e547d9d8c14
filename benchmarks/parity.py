"""Every target and precision of the nano checkpoint in one table: bytes, parity, and what the pixel detector says.

    python benchmarks/parity.py [CAPTIONS [RECIPE[@OBSERVER[:PERCENTILE]] ...]]

By default 200 captions and the recipes fp32, fp16 and int8 of every target. A RECIPE is the name of one that ships, or
a file; with an OBSERVER (min_max, percentile, mse) it is calibrated by that one, on other seeds than the golden ones,
and with ``@golden`` on every other golden case:

    python benchmarks/parity.py 100 onnx-int8@golden onnx-int8@min_max onnx-int8@percentile:99.99 onnx-int8@mse

The detector judges pictures of held-out captions (golden/nano/training/detector.py): the share with shape, colour and
place of every object right. Each picture is made by the exported artifacts in their own runtime.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from md_export.engine.export import export
from md_export.engine.generate import Request, pictures_of_artifacts, pictures_of_checkpoint
from md_export.spec.calibration import CalibrationPlan, ObserverName
from md_export.spec.recipe import Recipe, Tolerance
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.targets import TARGETS

sys.path.insert(0, str(nano_checkpoint()))
from training.detector import judge
from training.evaluate import held_out_scenes
from training.scenes import Scene, caption

HEADER = "| artifacts | bytes | text encoder dB | UNet dB | decoder dB | picture dB | detector |"


def sample(count: int) -> list[Scene]:
    """Held-out scenes, half with one object and half with two, the same every time."""
    singles, pairs = held_out_scenes(count // 2)
    chosen = np.random.default_rng(3).choice(len(singles), count - len(pairs), replace=False)
    return [*(singles[i] for i in chosen), *pairs]


class Detector:
    """The pixel detector on some scenes; ``requests`` ask for their pictures."""

    def __init__(self, scenes: list[Scene]) -> None:
        self._scenes = scenes
        self.requests: list[Request] = [(caption(scene), seed) for seed, scene in enumerate(scenes)]

    def score(self, pictures: list[np.ndarray]) -> str:
        """How many of the pictures are right."""
        return f"{self._right(pictures)}/{len(pictures)}"

    def share(self, pictures: list[np.ndarray]) -> float:
        """Of the pictures that are right."""
        return self._right(pictures) / len(pictures)

    def _right(self, pictures: list[np.ndarray]) -> int:
        return sum(judge(picture, scene).right for picture, scene in zip(pictures, self._scenes, strict=True))


def recipe_of(argument: str) -> Recipe:
    """``NAME``, ``FILE.toml``, or either with an observer; with one no threshold stands in the way of its figures."""
    name, _, observer = argument.partition("@")
    recipe = load_recipe(Path(name) if name.endswith(".toml") else builtin_recipe(*name.split("-", 1)))
    if not observer:
        return recipe
    tolerances: dict[str, Tolerance] = dict.fromkeys(recipe.components, Tolerance(snr_db=0.0))
    plan = None if observer == "golden" else plan_of(recipe, *observer.split(":"))
    return replace(recipe, calibration=plan, tolerances=tolerances, picture_psnr_db=0.0)


def plan_of(recipe: Recipe, observer: str, percentile: str | None = None) -> CalibrationPlan:
    """The recipe's own plan, or one of a seed, with this observer."""
    plan = recipe.calibration or CalibrationPlan(seeds=(1,))
    return replace(
        plan, observer=cast(ObserverName, observer), percentile=None if percentile is None else float(percentile)
    )


def rows(detector: Detector, names: list[str]) -> Iterator[str]:
    """Markdown rows; SNR of the components is the worst over the golden cases, PSNR of the picture too."""
    whole = detector.score(pictures_of_checkpoint(nano_checkpoint(), detector.requests))
    yield f"| torch float32 | - | - | - | - | - | {whole} |"
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(names):
            out = Path(scratch) / str(number)
            manifest, _ = export(recipe_of(name), nano_checkpoint(), out, progress=lambda _: None)
            figures = [f"{entry.parity.snr_db:.1f}" for entry in manifest.artifacts if entry.parity]
            size = sum(entry.bytes for entry in manifest.artifacts)
            seen = detector.score(pictures_of_artifacts(out, detector.requests))
            cells = (name.replace("-", " ", 1), f"{size:,}", *figures, f"{manifest.picture_psnr_db:.1f}", seen)
            yield f"| {' | '.join(cells)} |"


def main(count: int, names: list[str]) -> None:
    """Print the table."""
    print(HEADER)
    print("|---" + "|---:" * (HEADER.count("|") - 2) + "|")
    for row in rows(Detector(sample(count)), names):
        print(row, flush=True)


if __name__ == "__main__":
    usual = [f"{target}-{precision}" for target in TARGETS for precision in ("fp32", "fp16", "int8")]
    main(int((sys.argv[1:] or ["200"])[0]), sys.argv[2:] or usual)
