"""Random components of small widths: each lowered once per session, quantized from that in every precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from md_export.checkpoint import open_checkpoint
from md_export.parity.golden.folder import read_golden
from md_export.parity.metrics import compare, worst
from md_export.parity.rewritten_module import rewritten
from md_export.spec.recipe import Recipe
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from md_export.targets.tflite.target import TfliteModel
from planted import write_export
from small_models import CONFIGS
from support import Exported
from tflite_models import SCHEMES, Quantized, Subject, build_subject

target = TARGETS["tflite"].open()


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    """``subject(component, config="nano")``, built and lowered once."""
    torch.set_num_threads(1)
    built: dict[tuple[str, str], Subject] = {}

    def get(component: str, config: str = "nano") -> Subject:
        key = (component, config)
        if key not in built:
            built[key] = build_subject(component, CONFIGS[config], tmp_path_factory.mktemp("scratch"))
        return built[key]

    return get


@pytest.fixture(scope="session")
def artifact(subject: Callable[..., Subject], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``artifact(component, scheme, config="nano")``: the saved file, made once; do not change it."""
    root = tmp_path_factory.mktemp("tflite")

    def get(component: str, scheme: str, config: str = "nano") -> Path:
        path = root / f"{config}_{component}_{scheme}.tflite"
        return path if path.exists() else subject(component, config).export(SCHEMES[scheme], path)

    return get


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, nano: Path) -> Callable[[str], Path]:
    """``planted("rank5")`` → an export with one decoder, converted once. Do not change it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("planted")

    def get(plant: str) -> Path:
        out = root / plant
        if not out.exists():
            write_export(plant, out, nano / "tokenizer")
        return out

    return get


@pytest.fixture(scope="session")
def quantized(
    exported: Exported, nano: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Recipe], Quantized]:
    """A component quantized as a recipe says, once, from the float file that all recipes share."""
    root, checkpoint = tmp_path_factory.mktemp("quantized"), open_checkpoint(nano)
    found: dict[Path, Quantized] = {}

    def make(name: str, recipe: Recipe, path: Path) -> Quantized:
        float_file = exported("tflite", "fp32") / f"{name}.tflite"
        part, cases = rewritten(checkpoint, name, recipe), read_golden(nano / "golden").cases
        batches = [part.inputs_of(case) for case in cases]
        scheme = recipe.schemes[name]
        job = LoweringJob(name, part.module, part.inputs, part.outputs, batches[0], scheme, tuple(batches[::2]), root)
        TfliteModel(float_file).quantize(job).save(path)
        (made,), runner = part.outputs, target.load(path)
        figures = [
            compare(runner.run(batch)[made.name], case.output(name, made.name))
            for batch, case in zip(batches, cases, strict=True)
        ]
        return Quantized(path, worst(figures).snr_db)

    def get(name: str, recipe: Recipe) -> Quantized:
        path = root / f"{recipe.name}_{name}.tflite"
        if path not in found:
            found[path] = make(name, recipe, path)
        return found[path]

    return get
