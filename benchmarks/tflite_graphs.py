"""A component as a .tflite file, naive and rewritten: ops, latency on XNNPACK side by side, LiteRT's GPU engine.

    python benchmarks/tflite_graphs.py [ROUNDS [COMPONENT ...]]

Random weights with affines, narrow channels at the full number of layers. A process per form to convert. Latency: two
threads, all files in turn in each round, median and quartiles, CPU milliseconds of both threads beside wall. SNR is
against the untouched torch module; the GPU engine is asked where a driver is installed.
"""

from __future__ import annotations

import collections
import multiprocessing
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from coreml_measure import Subject
from md_export.components import COMPONENTS
from md_export.components.runner import TorchRunner
from md_export.data import builtin_recipe
from md_export.errors import MissingExtraError
from md_export.parity.metrics import compare
from md_export.parity.prepare import one_step
from md_export.recipe import load_recipe
from md_export.rewrites import Consent, apply_rewrites
from md_export.targets.contract import LoweringJob
from md_export.tensors import Array, Arrays

FORMS: Final = {"naive": (), "ours": load_recipe(builtin_recipe("tflite", "fp32")).rewrites}
PRECISIONS: Final = ("fp32", "int8")
HEADER: Final = (
    "| file | ops | RESHAPE | TRANSPOSE | convert CPU s | MB | wall ms | CPU ms | SNR dB | GPU engine | SNR dB |"
)


def convert(subject: Subject, form: str, folder: Path) -> float:
    """Rewrite, lower and quantize into ``folder``; CPU seconds of the lowering."""
    from md_export.targets.tflite.lower import lower
    from md_export.targets.tflite.quantize import quantize

    torch.set_num_threads(1)
    entry, config, module = COMPONENTS[subject.component], subject.config, subject.module()
    apply_rewrites(FORMS[form], subject.component, module, one_step(config), Consent())
    schemes = {name: load_recipe(builtin_recipe("tflite", name)).schemes[subject.component] for name in PRECISIONS}
    with tempfile.TemporaryDirectory() as scratch:
        inputs, outputs = entry.inputs(config), entry.outputs(config)
        drawn = subject.inputs()
        job = LoweringJob(subject.component, module, inputs, outputs, drawn, schemes["fp32"], (drawn,), Path(scratch))
        started = time.process_time()
        lowered = lower(job)
        seconds = time.process_time() - started
        for precision, scheme in schemes.items():
            quantized = quantize(lowered, replace(job, scheme=scheme))
            shutil.copyfile(quantized.path, folder / f"{form} {precision}.tflite")
    return seconds


def latencies(files: dict[str, Path], inputs: Arrays, rounds: int) -> dict[str, tuple[str, str]]:
    """Wall and CPU milliseconds of each file: median and quartiles, every file in turn in each round."""
    from md_export.targets.tflite.run import load

    runners = {name: load(path) for name, path in files.items()}
    taken: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for _ in range(rounds + 1):
        for name, runner in runners.items():
            before = (time.perf_counter(), time.process_time())
            runner.run(inputs)
            taken[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    # The first round warms up.
    return {name: (spread([w for w, _ in got[1:]]), spread([c for _, c in got[1:]])) for name, got in taken.items()}


def spread(seconds: list[float]) -> str:
    """Median and quartiles in milliseconds."""
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75)) * 1e3
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def on_gpu(path: Path, inputs: Arrays, expected: Array) -> tuple[str, str]:
    """Whether all is resident, and the SNR there."""
    from md_export.workers import execute_on_gpu

    try:
        run = execute_on_gpu(path, [inputs], limit_s=600)
    except MissingExtraError:
        return "no driver", "-"
    if run.failure:
        return "fails", "-"
    (out,) = run.outputs[0].values()
    return "all ops" if run.resident else "part", f"{compare(out, expected).snr_db:.1f}"


def row(name: str, path: Path, measured: tuple[str, ...], inputs: Arrays, expected: Array) -> str:
    """One Markdown row."""
    from md_export.targets.tflite.describe import describe
    from md_export.targets.tflite.run import load

    ops = describe(path).ops
    (out,) = load(path).run(inputs).values()
    counts = (str(sum(ops.values())), str(ops.get("RESHAPE", 0)), str(ops.get("TRANSPOSE", 0)))
    seconds, *times = measured
    figures = (seconds, f"{path.stat().st_size / 1e6:.1f}", *times, f"{compare(out, expected).snr_db:.1f}")
    return f"| {' | '.join((name, *counts, *figures, *on_gpu(path, inputs, expected)))} |"


def rows(component: str, rounds: int) -> list[str]:
    """Naive and ours, float and int8, of one component."""
    subject = Subject(component, small=True)
    inputs = subject.inputs()
    (expected,) = TorchRunner(component, subject.module(), subject.config).run(inputs).values()
    with tempfile.TemporaryDirectory() as scratch:
        seconds = {}
        for form in FORMS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds[form] = f"{pool.apply(convert, (subject, form, Path(scratch))):.0f}"
        files = {f"{form} {precision}": form for form in FORMS for precision in PRECISIONS}
        paths = {name: Path(scratch) / f"{name}.tflite" for name in files}
        times = latencies(paths, inputs, rounds)
        return [
            row(f"{component} {name}", paths[name], (seconds[form], *times[name]), inputs, expected)
            for name, form in files.items()
        ]


def main(rounds: int, components: list[str]) -> None:
    """Print the table."""
    print(HEADER)
    print("|---" + "|---:" * (HEADER.count("|") - 2) + "|")
    for component in components:
        print("\n".join(rows(component, rounds)), flush=True)


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["20"])[0]), sys.argv[2:] or ["unet"])
