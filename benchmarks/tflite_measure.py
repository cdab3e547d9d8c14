"""What benchmarks/tflite.py does in its processes: conversion, quantization, runs on XNNPACK."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np
import torch

from coreml_measure import Round, Subject
from md_export.engine.artifact import peak_resident_bytes
from md_export.models.families import COMPONENTS
from md_export.models.sampling.sampler import one_step
from md_export.parity.metrics import compare
from md_export.parity.rewritten_module import surface
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array, select
from md_export.targets.contract import LoweringJob

__all__ = ("AGAINST", "ON_GPU", "Converted", "Round", "convert", "forms", "given", "serve", "snr_db")

# By form; what is left out says nothing new.
PRECISIONS: Final = {
    "naive": ("fp32", "int8"),
    "rank 3": ("fp32", "int8"),
    "ours": ("fp32", "fp16", "int8"),
    "ours folded": ("fp32", "int8"),
}
# The file that --gpu executes.
ON_GPU: Final = "ours fp32"
# What is compared: how many times faster the first is than the second.
AGAINST: Final = (
    ("ours fp32", "rank 3 fp32"),
    ("ours int8", "rank 3 int8"),
    ("ours fp32", "naive fp32"),
    ("ours folded fp32", "naive fp32"),
    ("ours int8", "naive fp32"),
    ("ours int8", "naive int8"),
    ("ours folded int8", "naive fp32"),
    ("ours folded int8", "naive int8"),
)


@dataclass(frozen=True)
class Converted:
    """A file and what its form took to convert; quantizing comes on top of the seconds. Peak: most ever held."""

    path: Path
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    ops: dict[str, int]


def recipe(precision: str) -> Recipe:
    return load_recipe(builtin_recipe("tflite", precision))


def forms(component: str) -> dict[str, tuple[str, ...]]:
    """Names of rewrites by form; the timestep is the UNet's alone."""
    ours = recipe("fp32").rewrites
    folded = {"ours folded": ("fold_timestep", *ours)} if component in REWRITES["fold_timestep"].components else {}
    rank_3 = tuple(rewrite for rewrite in ours if rewrite != "rank_4_attention")
    return {"naive": (), "rank 3": rank_3, "ours": ours, **folded}


def convert(subject: Subject, form: str, folder: Path) -> dict[str, Converted]:
    """Rewrite, lower and quantize into ``folder``."""
    from md_export.targets.tflite.describe import describe
    from md_export.targets.tflite.lower import lower
    from md_export.targets.tflite.quantize import quantize
    from md_export.targets.tflite.target import TfliteModel

    name, config, module = subject.component, subject.config, subject.module()
    records = apply_rewrites(forms(name)[form], name, module, one_step(config), Consent())
    inputs, outputs = surface(COMPONENTS[name], config, records)
    drawn = select(subject.inputs(), inputs)
    job = LoweringJob(name, module, inputs, outputs, drawn, recipe("fp32").schemes[name], (drawn,), folder)
    wall, cpu = time.perf_counter(), time.process_time()
    lowered = lower(job) if records else TfliteModel(naive(job))
    made = {}
    for precision in PRECISIONS[form]:
        path = folder / f"{form} {precision}.tflite"
        quantized = quantize(lowered, replace(job, scheme=recipe(precision).schemes[name]))
        spent = (time.perf_counter() - wall, time.process_time() - cpu)
        quantized.save(path)
        made[f"{form} {precision}"] = Converted(path, *spent, peak_resident_bytes(), describe(path).ops)
    return made


def given(subject: Subject, path: Path) -> dict[str, Array]:
    """The inputs that the file takes: a folded one has no timestep."""
    from md_export.targets.tflite.run import load

    return select(subject.inputs(), load(path).inputs)


def naive(job: LoweringJob) -> Path:
    """litert_torch's own call, as its manual has it."""
    import litert_torch

    from md_export.targets.lowering import quiet

    sample = {name: torch.from_numpy(value) for name, value in job.example.items()}
    path = job.workdir / "naive.tflite"
    with quiet():
        litert_torch.convert(job.module, sample_kwargs=sample).export(str(path))
    return path


def serve(connection: Connection, subject: Subject, path: Path) -> None:
    """Run the file whenever asked."""
    from md_export.targets.tflite.run import load

    torch.set_num_threads(1)
    runner = load(path)
    inputs = select(subject.inputs(), runner.inputs)
    while connection.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        runner.run(inputs)
        connection.send(Round(time.perf_counter() - wall, time.process_time() - cpu, peak_resident_bytes()))


def snr_db(subject: Subject, path: Path, expected: Path) -> float:
    """Of a file's one output."""
    from md_export.targets.tflite.run import load

    runner = load(path)
    (output,) = runner.run(select(subject.inputs(), runner.inputs)).values()
    return compare(output, np.load(expected)).snr_db
