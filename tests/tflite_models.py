"""Random components of small widths, lowered, and components of the nano checkpoint, quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.parity.metrics import compare, first_fault
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import Array, Arrays
from md_export.targets import TARGETS
from md_export.targets.contract import Lowered, LoweringJob
from small_models import random_inputs

target = TARGETS["tflite"].open()

SCHEMES = {
    "fp32": QuantScheme("float32", "float32"),
    "fp16": QuantScheme("float16", "float32"),
    "int8": QuantScheme("int8", "int8_dynamic"),
    "int8_weights": QuantScheme("int8", "float32"),
    "int8_static": QuantScheme("int8", "int8_static"),
}
CASES = 4


@dataclass(frozen=True)
class Subject:
    """A lowered random component, and an input it was not calibrated on with torch's answer."""

    job: LoweringJob
    lowered: Lowered
    held_out: Arrays
    expected: Array

    def export(self, scheme: QuantScheme, path: Path) -> Path:
        self.lowered.quantize(replace(self.job, scheme=scheme)).save(path)
        return path

    def snr_db(self, path: Path) -> float:
        """Decibels of a saved file against torch; anything not finite or misshapen fails the test."""
        outputs = target.load(path).run(self.held_out)
        assert list(outputs) == [self.job.outputs[0].name]
        (found,) = outputs.values()
        assert first_fault(found, self.expected) is None
        return compare(found, self.expected).snr_db


def build_subject(component: str, config: ModelConfig, workdir: Path) -> Subject:
    entry = COMPONENTS[component]
    torch.manual_seed(0)
    module = entry.build(config).eval()
    for name, parameter in module.named_parameters():
        # A bias of zeros, as transformers starts with, is dropped by the converter.
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    calibration = tuple(random_inputs(component, config, seed) for seed in range(CASES))
    held_out = random_inputs(component, config, CASES)
    inputs, outputs = entry.input_specs(config), entry.output_specs(config)
    with torch.no_grad():
        expected = module(*(torch.from_numpy(held_out[spec.name]) for spec in inputs)).numpy()
    job = LoweringJob(component, module, inputs, outputs, calibration[0], SCHEMES["fp32"], calibration, workdir)
    return Subject(job, target.lower(job), held_out, expected)


@dataclass(frozen=True)
class Quantized:
    """A component's file and worst SNR over the golden cases."""

    path: Path
    snr_db: float
