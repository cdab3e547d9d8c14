"""Random components of small widths, and ONNX files of them exported once per session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.parity.metrics import compare, first_fault
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import Array, Arrays
from md_export.targets import TARGETS
from md_export.targets.contract import LoweringJob
from small_models import CONFIGS, random_inputs

target = TARGETS["onnx"].open()

SCHEMES = {
    "fp32": QuantScheme("float32", "float32"),
    "fp16": QuantScheme("float16", "float16"),
    "int8": QuantScheme("int8", "int8_static"),
}
# The last convolution's output is the result itself: 256 levels for it cost the nano UNet 3 dB.
KEPT = {"unet": ("conv_out",), "vae_decoder": ("decoder.conv_out",), "text_encoder": ()}
CASES = 6


@dataclass(frozen=True)
class Subject:
    """A random component with calibration inputs, and an input it was not calibrated on with torch's answer."""

    job: LoweringJob
    held_out: Arrays
    expected: Array

    def with_scheme(self, scheme: QuantScheme, workdir: Path) -> LoweringJob:
        return replace(self.job, scheme=scheme, workdir=workdir)

    def snr_db(self, path: Path, runtime: str | None = None) -> float:
        """Decibels of a saved file against torch; anything not finite or misshapen fails the test."""
        outputs = target.load(path, runtime).run(self.held_out)
        assert list(outputs) == [self.job.outputs[0].name]
        (found,) = outputs.values()
        assert first_fault(found, self.expected) is None
        return compare(found, self.expected).snr_db


def build_subject(component: str, config: ModelConfig) -> Subject:
    entry = COMPONENTS[component]
    torch.manual_seed(0)
    module = entry.build(config).eval()
    calibration = tuple(random_inputs(component, config, seed) for seed in range(CASES))
    held_out = random_inputs(component, config, CASES)
    inputs, outputs = entry.input_specs(config), entry.output_specs(config)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(held_out[spec.name]) for spec in inputs)).numpy()
    scheme = SCHEMES["fp32"]
    job = LoweringJob(component, module, inputs, outputs, calibration[0], scheme, calibration, Path())
    return Subject(job, held_out, expected)


def export(job: LoweringJob, path: Path) -> Path:
    job.workdir.mkdir(parents=True, exist_ok=True)
    target.lower(job).quantize(job).save(path)
    return path


@pytest.fixture(scope="session")
def subject() -> Callable[..., Subject]:
    """``subject(component, config="nano")``, built once."""
    torch.set_num_threads(1)
    built: dict[tuple[str, str], Subject] = {}

    def get(component: str, config: str = "nano") -> Subject:
        if (component, config) not in built:
            built[component, config] = build_subject(component, CONFIGS[config])
        return built[component, config]

    return get


@pytest.fixture(scope="session")
def artifact(subject: Callable[..., Subject], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``artifact(component, scheme, config="nano")``: the saved file, exported once; do not change it."""
    root = tmp_path_factory.mktemp("onnx")

    def get(component: str, scheme: str, config: str = "nano") -> Path:
        path = root / f"{config}_{component}_{scheme}.onnx"
        if not path.exists():
            chosen = SCHEMES[scheme]
            chosen = replace(chosen, keep_float=KEPT[component]) if scheme == "int8" else chosen
            export(subject(component, config).with_scheme(chosen, root / path.stem), path)
        return path

    return get


@pytest.fixture(scope="session")
def make() -> Callable[[LoweringJob, Path], Path]:
    """``make(job, path)``: lower, quantize, save."""
    return export
