"""Nano-shaped random components, and packages of them converted once per session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import Array, TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.target import CoremlModel, CoremlTarget
from small_models import CONFIGS, random_inputs

coreml = CoremlTarget()

SCHEMES = {
    "fp32": QuantScheme("float32", "float32"),
    "fp16": QuantScheme("float16", "float16"),
    "int8": QuantScheme("int8", "float16"),
}


@dataclass(frozen=True)
class Subject:
    """A random component with one input and the float32 output that torch gives for it."""

    job: LoweringJob
    expected: dict[str, Array]

    def with_scheme(self, scheme: QuantScheme, workdir: Path) -> LoweringJob:
        return replace(self.job, scheme=scheme, workdir=workdir)


def build_subject(component: str, config: ModelConfig) -> Subject:
    entry = COMPONENTS[component]
    torch.manual_seed(0)
    module: nn.Module = entry.build(config).eval()
    example = random_inputs(component, config, seed=0)
    inputs, outputs = entry.input_specs(config), entry.output_specs(config)
    with torch.no_grad():
        out = module(*(torch.from_numpy(example[spec.name]) for spec in inputs))
    job = LoweringJob(component, module, inputs, outputs, example, SCHEMES["fp32"], (), Path())
    return Subject(job, {outputs[0].name: out.numpy()})


def export(job: LoweringJob, path: Path) -> Path:
    job.workdir.mkdir(parents=True)
    coreml.lower(job).quantize(job).save(path)
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
def package(subject: Callable[..., Subject], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``package(component, scheme, config="nano")``: the saved package; one conversion serves fp16 and int8."""
    root = tmp_path_factory.mktemp("coreml")
    lowered: dict[tuple[str, str, str], CoremlModel] = {}

    def get(component: str, scheme: str, config: str = "nano") -> Path:
        path = root / f"{config}_{component}_{scheme}.mlpackage"
        if not path.exists():
            work = root / f"{config}_{component}"
            work.mkdir(exist_ok=True)
            job = subject(component, config).with_scheme(SCHEMES[scheme], work)
            key = (component, config, job.scheme.activations)
            if key not in lowered:
                folder = path.with_suffix(".float")
                folder.mkdir()
                lowered[key] = coreml.lower(replace(job, workdir=folder))
            lowered[key].quantize(job).save(path)
        return path

    return get


@pytest.fixture
def small_job(tmp_path: Path) -> Callable[..., LoweringJob]:
    """``small_job(module, scheme=fp32, width=4, out_shape=None)``: one input ``x`` [1, width], one output ``y``."""

    def build(
        module: nn.Module,
        scheme: QuantScheme = SCHEMES["fp32"],
        width: int = 4,
        out_shape: tuple[int, ...] | None = None,
    ) -> LoweringJob:
        given = TensorSpec("x", (1, width), "float32")
        made = TensorSpec("y", out_shape or (1, width), "float32")
        return LoweringJob("part", module.eval(), (given,), (made,), {"x": given.zeros()}, scheme, (), tmp_path)

    return build
