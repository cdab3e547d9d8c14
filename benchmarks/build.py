"""What an export takes, beside the naive call of each converter: memory, and wall seconds.

    python benchmarks/build.py [--small] [--keep FOLDER] [--component NAME] [--precision fp16] [--cases N] [--jobs N]
                               [TARGET ...]

Full-size MD, random weights in float32; --small takes a tenth of the UNet's and the text encoder's width. Naive is
what each converter's manual says, each component in a process of its own: ct.convert on a trace,
litert_torch.convert, torch.onnx.export with dynamo=True. Core ML's stores float16, the others float32, and ours the
same unless --precision says otherwise: the recipe, exported and verified on the first --cases of its golden cases,
which are computed before. Peaks are resident memory as the system counts it, pages of mapped files included: VmHWM of
a process that converts, and the sum over the exporting process and its workers, looked at ten times a second, of a
whole export. --jobs takes md-export build, so many steps at a time, in place of the export. --keep leaves the
checkpoint and the golden cases in a folder, for another target's run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

from build_measure import Exported, Taken, golden, init, naive, ours
from coreml_measure import Subject
from md_export.models.families import COMPONENTS
from side_by_side import apart, folder, megabytes, print_table

# Most times the bytes of a component's weights in float32, and of the naive seconds: what this project asks of itself.
GOALS: Final = {"coreml": 2.1, "tflite": 4.0, "onnx": 1.3}
# What each converter stores where nobody says otherwise.
STORED: Final = {"coreml": "fp16", "tflite": "fp32", "onnx": "fp32"}
PARTS: Final = (
    "target, component | weights MB | naive s | naive peak MB | of the weights | ours s | ours peak MB | of the weights"
)
WHOLES: Final = (
    "target | naive s | ours s | of it converting | ratio | naive CPU s | ours CPU s | ratio (goal 1.2) "
    "| peak of all processes MB | largest component's worker, of its weights | goal"
)


def main(
    small: bool,
    targets: tuple[str, ...],
    components: tuple[str, ...],
    kept: str | None,
    precision: str | None,
    count: int,
    jobs: int | None,
) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory(dir=kept) as name:
        scratch = Path(name)
        checkpoint, cases = Path(kept or name) / "checkpoint", Path(kept or name) / f"golden-{count}"
        weights: dict[str, int] = apart(init, Subject("unet", small), checkpoint)
        if not cases.exists():
            made: Taken = apart(golden, checkpoint, cases, targets[0], count)
            print(f"golden cases: {made.seconds:.0f} s, {megabytes(made.peak_bytes)} MB\n", flush=True)
        parts, wholes = [], []
        for target in targets:
            theirs = {one: _naive(target, Subject(one, small), checkpoint, scratch) for one in components}
            stored = precision or STORED[target]
            mine: Exported = apart(ours, target, stored, components, checkpoint, cases, scratch / target, jobs)
            parts += [_part(target, one, weights[one], theirs[one], mine) for one in components]
            wholes.append(_whole(target, weights, theirs, mine))
            print(*parts[-len(components) :], wholes[-1], sep="\n", file=sys.stderr, flush=True)
    print_table("Each component", PARTS, parts)
    print_table("All", WHOLES, wholes)


def _naive(target: str, subject: Subject, checkpoint: Path, scratch: Path) -> Taken:
    taken: Taken = apart(naive, target, subject, checkpoint, folder(scratch, f"{target}-{subject.component}"))
    return taken


def _part(target: str, component: str, weights: int, theirs: Taken, mine: Exported) -> str:
    cells = [f"{target} {component}", megabytes(weights)]
    own = mine.worker_seconds[component], mine.worker_peaks[component]
    for seconds, peak in ((theirs.seconds, theirs.peak_bytes), own):
        cells += [f"{seconds:.0f}", megabytes(peak), f"{peak / weights:.2f}"]
    return " | ".join(cells)


def _whole(target: str, weights: dict[str, int], theirs: dict[str, Taken], mine: Exported) -> str:
    wall, cpu = (sum(getattr(taken, name) for taken in theirs.values()) for name in ("seconds", "cpu_seconds"))
    largest = max(theirs, key=lambda name: weights[name])
    cells = (
        target,
        f"{wall:.0f}",
        f"{mine.whole.seconds:.0f}",
        f"{sum(mine.worker_seconds.values()):.0f}",
        f"{mine.whole.seconds / wall:.2f}",
        f"{cpu:.0f}",
        f"{mine.whole.cpu_seconds:.0f}",
        f"{mine.whole.cpu_seconds / cpu:.2f}",
        megabytes(mine.whole.peak_bytes),
        f"{mine.worker_peaks[largest] / weights[largest]:.2f}",
        f"{GOALS[target]:g}",
    )
    return " | ".join(cells)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--keep")
    parser.add_argument("--component", choices=COMPONENTS)
    parser.add_argument("--precision", choices=("fp16", "fp32"))
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--jobs", type=int)
    asked = parser.parse_args()
    components = (asked.component,) if asked.component else tuple(COMPONENTS)
    main(asked.small, tuple(asked.targets or GOALS), components, asked.keep, asked.precision, asked.cases, asked.jobs)
