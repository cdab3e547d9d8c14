"""What benchmarks/coreml.py does in its processes: random models, conversion, runs by torch and by our runtime."""

from __future__ import annotations

import collections
import dataclasses
import math
import resource
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from md_export.checkpoint.architectures import arch_config
from md_export.engine.artifact import peak_resident_bytes
from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.models.sampling.generate import TorchRunner
from md_export.models.sampling.sampler import one_step
from md_export.models.unet import MDUNetConfig
from md_export.parity.metrics import compare
from md_export.parity.rewritten_module import surface
from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.artifact import Parity, bytes_of_artifact
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, select
from md_export.targets.contract import LoweringJob

THREADS: Final = 2


@dataclasses.dataclass(frozen=True)
class Subject:
    """One component at full width, or at a tenth of it with as many layers and heads."""

    component: str
    small: bool

    @property
    def config(self) -> ModelConfig:
        config = arch_config("md")
        if not self.small:
            return config
        unet = MDUNetConfig(
            sample_size=16,
            block_out_channels=(32, 80, 128),
            cross_attention_dim=96,
            attention_head_dim=8,
            norm_num_groups=16,
            time_embed_dim=128,
        )
        text = {**config.text_encoder, "hidden_size": 96, "intermediate_size": 384}
        return dataclasses.replace(config, denoiser=unet, text_encoder=text)

    def module(self) -> nn.Module:
        """Random weights; the norms' affines too, which a trained model has and a fresh one lacks."""
        torch.manual_seed(0)
        module = COMPONENTS[self.component].build(self.config).eval().requires_grad_(False)
        for layer in module.modules():
            if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
                nn.init.normal_(layer.weight, 1.0, 0.1)
                nn.init.normal_(layer.bias, 0.0, 0.1)
        return module

    def inputs(self, seed: int = 0) -> dict[str, Array]:
        """The step's timestep, random tokens, and unit noise for what is a latent or a normalized text."""
        rng = np.random.default_rng(seed)
        drawn: dict[str, Array] = {}
        for spec in COMPONENTS[self.component].input_specs(self.config):
            if spec.name == "timestep":
                drawn[spec.name] = np.full(spec.shape, self.config.schedule.last_timestep, np.float32)
            elif spec.dtype == "int32":
                drawn[spec.name] = rng.integers(0, 49408, spec.shape, dtype=np.int32)
            else:
                drawn[spec.name] = rng.standard_normal(spec.shape, dtype=np.float32)
        return drawn


@dataclasses.dataclass(frozen=True)
class Converted:
    """A package and what making it took; ``peak_bytes`` is the most the process ever held."""

    path: Path
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    package_bytes: int
    kinds: collections.Counter[str]
    rank5: int


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Resident bytes before the model came, and of a package the largest set of values alive at once."""

    resident_bytes: int
    activation_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Round:
    """One execution; ``peak_bytes`` is the most the process has held so far."""

    wall: float
    cpu: float
    peak_bytes: int


def recipe() -> Recipe:
    return load_recipe(builtin_recipe("coreml", "fp16"))


def convert(subject: Subject, rewrites: tuple[str, ...], workdir: Path) -> Converted:
    """Rewrite and lower; the clock sees tracing, conversion and writing."""
    from md_export.targets.coreml.lower import lower
    from md_export.targets.coreml.package import main_operations, read_spec

    torch.set_num_threads(THREADS)
    name, config, module = subject.component, subject.config, subject.module()
    records = apply_rewrites(rewrites, name, module, one_step(config), Consent())
    inputs, outputs = surface(COMPONENTS[name], config, records)
    example = select(subject.inputs(), inputs)
    job = LoweringJob(name, module, inputs, outputs, example, recipe().schemes[name], (), workdir)
    wall, cpu = time.perf_counter(), time.process_time()
    path = lower(job).package
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    operations = [op for op in main_operations(read_spec(path)) if op.type != "const"]
    rank5 = sum(len(output.type.tensorType.dimensions) >= 5 for op in operations for output in op.outputs)
    kinds = collections.Counter(str(op.type) for op in operations)
    return Converted(path, seconds, cpu_seconds, peak_resident_bytes(), bytes_of_artifact(path), kinds, rank5)


def reference(subject: Subject, path: Path) -> None:
    """What the untouched module computes, as ``path``."""
    output = TorchRunner(subject.component, subject.module(), subject.config).run(subject.inputs())
    np.save(path, next(iter(output.values())))


def parity(subject: Subject, package: Path, expected: Path) -> Parity:
    """Of a package, executed by our runtime."""
    from md_export import mil

    program = mil.load(package)
    given = subject.inputs()
    (output,) = program.predict({feature.name: given[feature.name] for feature in program.inputs}).values()
    return compare(output, np.load(expected))


def serve_torch(connection: Connection, subject: Subject) -> None:
    """Run the float32 module whenever asked."""
    torch.set_num_threads(THREADS)
    before = Loaded(resident_bytes())
    runner = TorchRunner(subject.component, subject.module(), subject.config)
    _serve(connection, before, lambda: runner.run(subject.inputs()))


def serve_package(connection: Connection, subject: Subject, package: Path) -> None:
    """Run the package whenever asked."""
    import coremltools  # noqa: F401 (the runtime reads packages with its protobuf classes)

    from md_export import mil

    torch.set_num_threads(THREADS)
    before = resident_bytes()
    program = mil.load(package)
    given = subject.inputs()
    inputs = {feature.name: given[feature.name] for feature in program.inputs}
    _serve(connection, Loaded(before, activation_bytes(program.graph)), lambda: program.predict(inputs))


def _serve(connection: Connection, loaded: Loaded, run: Callable[[], Mapping[str, Array]]) -> None:
    connection.send(loaded)
    while connection.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        connection.send(Round(time.perf_counter() - wall, time.process_time() - cpu, peak_resident_bytes()))


def activation_bytes(graph: Any) -> int:
    """Largest sum over the program of the values alive at once, at their declared shapes and types."""
    sizes = {name: math.prod(kind.shape) * kind.dtype.bits // 8 for name, kind in graph.types.items()}
    live, most = {item.name for item in graph.inputs}, 0
    for op, dead in zip(graph.ops, graph.dead_after, strict=True):
        live |= {output.name for output in op.outputs}
        most = max(most, sum(sizes[name] for name in live))
        live -= set(dead)
    return most


def resident_bytes() -> int:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
