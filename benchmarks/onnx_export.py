"""A component as ONNX, optimum's way and ours: conversion, size, latency, accuracy, Core ML partitions.

    python benchmarks/onnx_export.py [--small] [--rounds 9] [COMPONENT ...]
    python benchmarks/onnx_export.py --static OBSERVER [--cases 16] [--small] [COMPONENT ...]

Full-size MD with random weights and affines, every conversion in a process of its own (seconds and peak are that
process's); ``--small``: narrow channels and as many layers. Optimum's way is re-created by the public function that it
calls, with the arguments that it passes: torch.onnx.export through TorchScript, dynamic axes, opset 18, constants
folded. Ours are the recipes onnx-fp32, onnx-fp16 and onnx-int8, the last one calibrated on four random inputs.
Latency: onnxruntime on the CPU, two threads, one process for each file, all of them in turn in each round; median,
quartiles, CPU seconds of both threads beside wall. SNR is against the torch module, in onnxruntime as it is; for
float16 in brackets with every result rounded to float16, which onnxruntime leaves out on x86 (docs/onnx.md). Partitions
are those of onnxruntime's check of mobile usability for Core ML's ML programs.

--static: the conversion to static int8 alone, by an observer of ours, with the hash of the file. PYTHONPATH=FOLDER
measures the code of another checkout.

It cannot be called onnx.py: a script's folder comes first on Python's path, and onnxruntime imports onnx.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import Final, get_args

import onnx_measure as measure
from coreml_measure import reference
from md_export.models.families import COMPONENTS
from md_export.spec.calibration import ObserverName, RangeRule
from onnx_measure import OURS, THEIRS, Converted, Round, Subject
from side_by_side import apart, latencies, spread, table, times_faster

HEADER: Final = (
    "file",
    "convert s",
    "CPU s",
    "peak MB",
    "MB",
    "nodes",
    "wall ms",
    "CPU ms",
    "SNR dB",
    "Core ML partitions",
)

STATIC: Final = ("static int8", "observer", "cases", "convert s", "CPU s", "peak MB", "MB", "SNR dB", "SHA-256")


def row(name: str, made: Converted, runs: list[Round], snr: tuple[float, float], partitions: str) -> tuple[str, ...]:
    """One file's figures."""
    took = (f"{made.seconds:.0f}", f"{made.cpu_seconds:.0f}", f"{made.peak_bytes / 1e6:,.0f}")
    size = (f"{made.bytes / 1e6:,.0f}", str(made.nodes))
    times = (spread([run.wall for run in runs]), spread([run.cpu for run in runs]))
    plain, rounded = snr
    accuracy = f"{plain:.1f} ({rounded:.1f})" if plain != rounded else f"{plain:.1f}"
    return (name, *took, *size, *times, accuracy, partitions)


def ratios(made: dict[str, Converted], runs: dict[str, list[Round]]) -> list[tuple[str, ...]]:
    """How many times faster another file is (medians of the rounds' own ratios), and what making it took."""

    def share(fast: str, slow: str, field: str) -> str:
        return f"{getattr(made[fast], field) / getattr(made[slow], field):.2f}"

    return [
        (
            f"{fast} against {slow}",
            *(times_faster(runs[slow], runs[fast], field) for field in ("wall", "cpu")),
            *(share(fast, slow, field) for field in ("bytes", "cpu_seconds", "peak_bytes")),
        )
        for fast, slow in measure.AGAINST
    ]


def component(name: str, small: bool, rounds: int, scratch: Path) -> None:
    """Print both tables of one component."""
    subject = Subject(name, small)
    expected = scratch / "expected.npy"
    apart(reference, subject, expected)
    made: dict[str, Converted] = {form: apart(measure.convert, subject, form, scratch) for form in (THEIRS, *OURS)}
    runs = latencies(measure.serve, subject, {form: item.path for form, item in made.items()}, rounds)
    rows = []
    for form, item in made.items():
        snr = apart(measure.snr_db, subject, item.path, expected)
        rows.append(row(f"{name} {form}", item, runs[form], snr, apart(measure.partitions, item.path)))
    print(table(HEADER, rows), flush=True)
    header = ("", "times faster, wall", "CPU", "share of its bytes", "of its CPU s", "of its peak")
    print("\n" + table(header, ratios(made, runs)) + "\n", flush=True)


def static(name: str, small: bool, observer: ObserverName, cases: int, scratch: Path) -> None:
    """Print what static int8 of one component takes."""
    subject, expected = Subject(name, small), scratch / "expected.npy"
    rule = RangeRule(observer, 99.99 if observer == "percentile" else None)
    made: Converted = apart(measure.convert, subject, OURS[-1], scratch, rule, cases)
    apart(reference, subject, expected)
    snr, _ = apart(measure.snr_db, subject, made.path, expected)
    took = (f"{made.seconds:.0f}", f"{made.cpu_seconds:.0f}", f"{made.peak_bytes / 1e6:,.0f}")
    digest = hashlib.sha256(made.path.read_bytes()).hexdigest()[:16]
    print(table(STATIC, [(name, observer, str(cases), *took, f"{made.bytes / 1e6:,.0f}", f"{snr:.2f}", digest)]))


def main() -> None:
    """Print the tables of the components asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("components", nargs="*", choices=[*COMPONENTS, []], metavar="COMPONENT")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--static", choices=get_args(ObserverName), metavar="OBSERVER")
    parser.add_argument("--cases", type=int, default=16)
    arguments = parser.parse_args()
    for name in arguments.components or ("text_encoder", "unet", "vae_decoder"):
        with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
            if arguments.static:
                static(name, arguments.small, arguments.static, arguments.cases, Path(scratch))
            else:
                component(name, arguments.small, arguments.rounds, Path(scratch))


if __name__ == "__main__":
    main()
