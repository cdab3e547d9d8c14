"""The full-size model as Core ML programs: what converting takes, what the graphs hold, how our runtime executes them.

    python benchmarks/coreml.py [--small]

First the UNet in four forms: as torch has it, as Apple's tool rewrites it (1×1 convolutions, one einsum per attention
head), as the recipe coreml-fp16 does, and that with the timestep and the attention scale folded. Then every component
as that recipe exports it: our runtime beside torch float32, on the same input with two threads each, in alternation.
Random weights; --small keeps all layers and takes a tenth of the width, for a quick look at the graphs. Every
measurement has a process of its own; one that was used for something else would show another's memory.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coreml_measure import (
    THREADS,
    Converted,
    Loaded,
    Round,
    Subject,
    convert,
    parity,
    recipe,
    reference,
    serve_package,
    serve_torch,
)
from md_export.models.families import COMPONENTS
from md_export.spec.artifact import Parity
from side_by_side import SPAWN, apart, folder, megabytes, print_table

SHIPPED: Final = "recipe `coreml-fp16`"
FORMS: Final[dict[str, tuple[str, ...]]] = {
    "as torch has it": (),
    "1×1 convolutions, one einsum per head": ("linear_to_conv2d", "split_attention_heads"),
    SHIPPED: recipe().rewrites,
    "and timestep and attention scale folded": (*recipe().rewrites, "fold_timestep", "fold_attention_scale"),
}
ROUNDS: Final = 5
GRAPHS: Final = "UNet | convert s | CPU s | peak MB | ops | transposes | rank 5 | package MB | SNR dB | PSNR dB"
TIMES: Final = "component | torch s | ours s | ratio | torch CPU s | ours CPU s | ratio"
MEMORY: Final = (
    "component | package MB | activations MB | libraries MB | peak MB | peak less libraries MB "
    "| over package and activations | torch: peak less libraries MB"
)


def main(small: bool) -> None:
    """Print the three tables."""
    with tempfile.TemporaryDirectory() as scratch:
        packages = {"unet": graphs(small, Path(scratch))}
        for name in COMPONENTS:
            if name not in packages:
                packages[name] = apart(convert, Subject(name, small), recipe().rewrites, folder(scratch, name))
        runs = [Execution.of(Subject(name, small), packages[name]) for name in COMPONENTS]
    print_table(f"Median (least to most) of {ROUNDS} runs, {THREADS} threads", TIMES, [run.times() for run in runs])
    print_table("Resident memory", MEMORY, [run.memory() for run in runs])


def graphs(small: bool, scratch: Path) -> Converted:
    """Convert, count and execute each form of the UNet; returns the one that the recipe ships."""
    subject, expected, rows = Subject("unet", small), scratch / "expected.npy", []
    apart(reference, subject, expected)
    packages: dict[str, Converted] = {}
    for form, rewrites in FORMS.items():
        made: Converted = apart(convert, subject, rewrites, folder(scratch, f"unet{len(packages)}"))
        found: Parity = apart(parity, subject, made.path, expected)
        counts = (made.kinds.total(), made.kinds["transpose"], made.rank5)
        rows.append(
            f"{form} | {made.seconds:.1f} | {made.cpu_seconds:.1f} | {megabytes(made.peak_bytes)} | "
            f"{' | '.join(map(str, counts))} | {megabytes(made.package_bytes)} | "
            f"{found.snr_db:.1f} | {found.psnr_db:.1f}"
        )
        packages[form] = made
    print_table("Graphs", GRAPHS, rows)
    return packages[SHIPPED]


@dataclass(frozen=True)
class Execution:
    """One component by torch and by our runtime, in alternation."""

    component: str
    package_bytes: int
    torch_loaded: Loaded
    ours_loaded: Loaded
    torch: tuple[Round, ...]
    ours: tuple[Round, ...]

    @classmethod
    def of(cls, subject: Subject, made: Converted) -> Execution:
        with ExitStack() as stack:
            torch, torch_loaded = started(stack, serve_torch, subject)
            ours, ours_loaded = started(stack, serve_package, subject, made.path)
            # The first run of each maps weights and chooses kernels.
            pairs = [(ask(torch), ask(ours)) for _ in range(1 + ROUNDS)][1:]
        torch_rounds, our_rounds = zip(*pairs, strict=True)
        return cls(subject.component, made.package_bytes, torch_loaded, ours_loaded, torch_rounds, our_rounds)

    def times(self) -> str:
        cells = []
        for clock in ("wall", "cpu"):
            theirs, own = ([getattr(item, clock) for item in rounds] for rounds in (self.torch, self.ours))
            cells += [spread(theirs), spread(own), f"{statistics.median(own) / statistics.median(theirs):.2f}"]
        return " | ".join((self.component, *cells))

    def memory(self) -> str:
        peak, libraries = self.ours[-1].peak_bytes, self.ours_loaded.resident_bytes
        floor = self.package_bytes + self.ours_loaded.activation_bytes
        sizes = (self.package_bytes, self.ours_loaded.activation_bytes, libraries, peak, peak - libraries)
        theirs = self.torch[-1].peak_bytes - self.torch_loaded.resident_bytes
        ratio = f"{(peak - libraries) / floor:.2f}"
        return " | ".join((self.component, *map(megabytes, sizes), ratio, megabytes(theirs)))


def started(stack: ExitStack, serve: Callable[..., None], *args: Any) -> tuple[Any, Loaded]:
    """A process that waits to be asked, and what it held before; it ends with the stack."""
    here, there = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(there, *args))
    process.start()
    there.close()
    stack.callback(process.join)
    stack.callback(here.send, False)
    return here, here.recv()


def ask(connection: Any) -> Round:
    """One run."""
    connection.send(True)
    answer: Round = connection.recv()
    return answer


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main("--small" in sys.argv[1:])
