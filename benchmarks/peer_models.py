"""Models that our recipes and the peers' algorithms are compared on, with cases that judge and cases that calibrate."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from md_export.checkpoint import open_checkpoint
from md_export.models.values import LAST, PICTURE
from md_export.models.walk import Tensors
from md_export.parity.golden.folder import GoldenSource, write_golden
from md_export.parity.golden.prepare import calibration_cases, golden_source, prepare_golden
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.spec.tensors import Array
from outliers import planted_nano
from taef2 import tiny_checkpoint

COMPONENTS: Final = ("text_encoder", "unet", "vae_decoder")
MODELS: Final = ("nano", "outliers", "taef2")
FACTOR: Final = 64.0
SIDE: Final = 128


@dataclass(frozen=True)
class Model:
    """A checkpoint, the components that are compared, and the cases that judge and calibrate."""

    name: str
    checkpoint: Path
    components: tuple[str, ...]
    golden: Path
    calibration: Path


def whole(name: str, folder: Path, scratch: Path) -> Model:
    """All components of a checkpoint, judged by its golden cases and calibrated on other noise."""
    recipe, checkpoint = load_recipe(builtin_recipe("onnx", "int8")), open_checkpoint(folder)
    golden, calibration = scratch / "golden", scratch / "calibration"
    prepare_golden(recipe, checkpoint, None, golden, lambda _: None)
    with calibration_cases(recipe, checkpoint, golden, scratch, lambda _: None) as made:
        assert made is not None
        shutil.copytree(made, calibration)
    return Model(name, folder, COMPONENTS, golden, calibration)


@dataclass(frozen=True)
class Photographs(GoldenSource):
    """Golden cases whose latents an encoder made of photographs; the UNet of such a case is random, and not judged."""

    decoder: nn.Module = dataclasses.field(default_factory=nn.Identity)
    crops: tuple[Array, ...] = ()

    def generate(self, prompt: str, seed: int) -> Tensors:
        values, family = super().generate(prompt, seed), self.pipeline.family
        values[PICTURE.key] = self.crops[seed]
        (values[family.encoded.key],) = self.pipeline.encoded([self.crops[seed]])
        values[LAST.key] = values[family.encoded.key]
        with torch.no_grad():
            values[family.image.key] = self.decoder(torch.from_numpy(values[LAST.key])).numpy()
        return values


def tiny(weights: Path, scratch: Path) -> Model:
    """The trained decoder: left halves of photographs calibrate, right halves judge."""
    folder = tiny_checkpoint(weights, SIDE, scratch)
    checkpoint = open_checkpoint(folder)
    plain = golden_source(checkpoint, encodes=True)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    halves = crops()
    for name, half in halves.items():
        (scratch / name).mkdir()
        source = Photographs(**fields, decoder=checkpoint.module("vae_decoder"), crops=half)
        write_golden(source, [("a", seed) for seed in range(len(half))], scratch / name)
    return Model("taef2 decoder", folder, ("vae_decoder",), scratch / "golden", scratch / "calibration")


def crops() -> dict[str, tuple[Array, ...]]:
    """Squares ``[1, 3, SIDE, SIDE]`` in [-1, 1] of two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    found: dict[str, list[Array]] = {"calibration": [], "golden": []}
    for picture in load_sample_images().images:
        height, width, _ = picture.shape
        for top in range(0, height - SIDE + 1, SIDE):
            for left in range(0, width - SIDE + 1, SIDE):
                square = picture[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1)[None] / 127.5 - 1
                half = "calibration" if 2 * left + SIDE <= width else "golden"
                found[half].append(np.ascontiguousarray(square, dtype=np.float32))
    return {half: tuple(squares) for half, squares in found.items()}


def models(names: tuple[str, ...], weights: Path | None, scratch: Path) -> Iterator[Model]:
    for name in names:
        place = scratch / name
        place.mkdir()
        if name == "nano":
            yield whole("nano", nano_checkpoint(), place)
        elif name == "outliers":
            planted = place / "checkpoint"
            planted.mkdir()
            yield whole(f"nano, outliers × {FACTOR:g}", planted_nano(FACTOR, planted), place)
        elif weights is not None:
            yield tiny(weights, place)
