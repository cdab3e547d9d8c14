"""A component as a .tflite file, the naive way and ours: conversion, size, ops, latency, accuracy, residency.

    python benchmarks/tflite.py [--small] [--gpu] [--rounds 9] [--form ours ...] [COMPONENT ...]

Full-size MD with random weights and affines, every conversion in a process of its own (seconds and peak are that
process's); ``--small``: narrow channels and as many layers. Naive is litert_torch on the module as torch has it, and
the same file through the same quantizer; ours is the recipe's rewrites, and these with the timestep folded in; rank 3
is ours without ``rank_4_attention``.
Latency: XNNPACK, two threads, one process for each file, all of them in turn in each round; median, quartiles, CPU
seconds of both threads beside wall. SNR is against the untouched torch module. Residency is the answer of LiteRT's
GPU engine to the file; where no driver is installed it is not asked. ``--gpu`` also executes our float32 file there,
in software: minutes to an hour for a full-size UNet.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

import tflite_measure as measure
from coreml_measure import Subject, reference
from md_export.errors import MissingExtraError
from md_export.models.families import COMPONENTS
from md_export.parity.metrics import compare
from side_by_side import apart, latencies, spread, table, times_faster
from tflite_measure import Converted, Round

HEADER: Final = (
    "file",
    "convert s",
    "CPU s",
    "peak MB",
    "MB",
    "ops",
    "RESHAPE",
    "TRANSPOSE",
    "wall ms",
    "CPU ms",
    "SNR dB",
    "GPU engine",
)


def on_gpu(subject: Subject, path: Path, expected: Path | None) -> str:
    """What the engine says of the file; it is executed where an ``expected`` output is given."""
    from md_export.targets.tflite.gpu.engine import execute_on_gpu
    from md_export.targets.tflite.gpu.residency import read_log

    try:
        run = execute_on_gpu(path, [measure.given(subject, path)] if expected else [], limit_s=7200)
    except MissingExtraError:
        return "no driver"
    if run.failure:
        return f"fails: {run.failure}"
    log = read_log(run.log)
    verdict = "all ops" if run.resident else f"{log.on_cpu} ops left to the CPU"
    verdict = "; ".join((verdict, *log.invalid[:1]))
    if expected is None:
        return f"{verdict}, {run.compile_seconds:,.0f} s"
    (output,) = run.outputs[0].values()
    snr = compare(output, np.load(expected)).snr_db
    return f"{verdict}, {run.compile_seconds:,.0f} s, run {run.run_seconds:,.0f} s, {snr:.1f} dB"


def row(name: str, converted: Converted, runs: list[Round], snr: float, engine: str) -> tuple[str, ...]:
    """One file's figures."""
    made = (f"{converted.seconds:.0f}", f"{converted.cpu_seconds:.0f}", f"{converted.peak_bytes / 1e6:,.0f}")
    kinds = converted.ops
    ops = (sum(kinds.values()), kinds.get("RESHAPE", 0), kinds.get("TRANSPOSE", 0))
    times = (spread([run.wall for run in runs]), spread([run.cpu for run in runs]))
    size = f"{converted.path.stat().st_size / 1e6:,.0f}"
    return (name, *made, size, *map(str, ops), *times, f"{snr:.1f}", engine)


def ratios(runs: dict[str, list[Round]]) -> list[tuple[str, ...]]:
    """How many times faster than another file each of ours is: medians of the rounds' own ratios."""

    wanted = [(slow, fast) for fast, slow in measure.AGAINST if {slow, fast} <= set(runs)]
    return [
        (f"{fast} against {slow}", *(times_faster(runs[slow], runs[fast], field) for field in ("wall", "cpu")))
        for slow, fast in wanted
    ]


def component(name: str, small: bool, gpu: bool, rounds: int, forms: list[str], scratch: Path) -> None:
    """Print both tables and the op histograms of one component."""
    subject = Subject(name, small)
    expected = scratch / "expected.npy"
    apart(reference, subject, expected)
    made: dict[str, Converted] = {}
    for form in forms or measure.forms(name):
        made |= apart(measure.convert, subject, form, scratch)
    runs = latencies(measure.serve, subject, {label: item.path for label, item in made.items()}, rounds)
    rows = []
    for label, item in made.items():
        snr = apart(measure.snr_db, subject, item.path, expected)
        engine = on_gpu(subject, item.path, expected if gpu and label == measure.ON_GPU else None)
        rows.append(row(f"{name} {label}", item, runs[label], snr, engine))
    print(table(HEADER, rows), flush=True)
    print("\n" + table(("times faster", "wall", "CPU"), ratios(runs)) + "\n", flush=True)
    for label, item in made.items():
        print(f"{label}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(item.ops.items())))
    print(flush=True)


def main() -> None:
    """Print the tables of the components asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", nargs="*", choices=[*COMPONENTS, []], metavar="COMPONENT")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--form", action="append", choices=measure.PRECISIONS, help="Only these (default: all).")
    arguments = parser.parse_args()
    for name in arguments.components or ("text_encoder", "unet", "vae_decoder"):
        with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
            component(name, arguments.small, arguments.gpu, arguments.rounds, arguments.form, Path(scratch))


if __name__ == "__main__":
    main()
