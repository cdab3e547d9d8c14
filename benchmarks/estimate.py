"""Published latencies beside the roofline's estimates, each also estimated without itself.

    python benchmarks/estimate.py [EXPORT ...]

Operations are those of torch modules on the meta device (``peers.py``), in the form that torch has them: graphs that
others lowered are not published. Of exports named on the command line, Core ML ones of full-size MobileDiffusion or
Stable Diffusion 1.5, what the lowered graphs themselves give beside table 4 of arXiv 2311.16567. Nothing is measured:
seconds.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from md_export.diagnose.estimate.command import costs_of
from md_export.diagnose.estimate.devices import LIKELY, Constants, Fit, Latency, RowError, fit, fit_of, knowledge
from md_export.diagnose.estimate.roofline import floor_of, seconds_of
from md_export.spec.manifest import read_manifest

TABLE_4 = "iphone15pro"


def main(exports: Sequence[Path]) -> None:
    known = knowledge()
    alone = fit(known, {TABLE_4: known.devices[TABLE_4]})
    for unit in dict.fromkeys(device.unit.title for device in known.devices.values()):
        found = fit_of(unit)
        print(f"### {unit}", "", constants(found.constants), summary(found), "", *table(found.rows), "", sep="\n")
    print("### The iPhone 15 Pro's rows alone", "", constants(alone.constants), summary(alone), "", sep="\n")
    print(*table(alone.rows), "", sep="\n")
    for out in exports:
        print(
            *lowered(out, {"all iPhones": fit_of(known.devices[TABLE_4].unit.title), "table 4 alone": alone}), sep="\n"
        )


def constants(found: Constants) -> str:
    return (
        f"convolutions reach {found.convolution:.2f} of the peak, matrix products {found.matrix_product:.2f}; "
        f"{found.spill:.2f} of the activations go through memory; {found.launch_s * 1e6:g} µs an operation"
    )


def summary(found: Fit) -> str:
    """Errors of rows that were fitted, of rows held out, and of rows of a phone that was held out."""
    fitted = [row.fitted / row.latency.ms for row in found.rows if row.latency.fit]
    held_out = [row.factor for row in found.rows if row.latency.fit]
    strangers = [row.without_device / row.latency.ms for row in found.rows if row.without_device and row.latency.fit]
    compared = [row.factor for row in found.rows if not row.latency.fit]
    parts = [f"fitted {factors(fitted)}", f"row held out {factors(held_out)}"]
    parts += [f"phone held out {factors(strangers)}"] if strangers else []
    parts += [f"never fitted {factors(compared)}"] if compared else []
    return f"{'; '.join(parts)}; four of five of all within ×{found.factor(LIKELY):.2f}"


def factors(found: Iterable[float]) -> str:
    apart = [abs(math.log(factor)) for factor in found]
    return f"×{math.exp(statistics.median(apart)):.2f} in the median, ×{math.exp(max(apart)):.2f} at worst"


def table(rows: Iterable[RowError]) -> list[str]:
    lines = [
        "| phone | model | published ms | floor ms | estimate ms | row held out | phone held out | |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        latency = row.latency
        stranger = "-" if row.without_device is None else error(row.without_device, latency.ms)
        estimated = f"{row.fitted:.1f} ({error(row.fitted, latency.ms)})" if latency.fit else "-"
        cells = (latency.device, latency.peer, f"{latency.ms:g}", f"{floor_ms(row):.1f}", estimated)
        lines.append(f"| {' | '.join(cells)} | {error(row.without_row, latency.ms)} | {stranger} | {latency.note} |")
    return lines


def error(ms: float, published: float) -> str:
    return f"{100 * (ms / published - 1):+.0f} %"


def floor_ms(row: RowError) -> float:
    device = knowledge().devices[row.latency.device]
    kinds = [
        (op.cost(row.latency.weight_bits, row.latency.arithmetic), op.number)
        for op in knowledge().peers[row.latency.peer]
    ]
    return floor_of([op for op, number in kinds for _ in range(number)], device).ms


def lowered(out: Path, fits: dict[str, Fit]) -> list[str]:
    """An export's own graphs, in milliseconds, with the constants of each fit."""
    manifest, device = read_manifest(out), knowledge().devices[TABLE_4]
    lines = [f"### {manifest.recipe.name} as it was lowered, beside table 4", ""]
    lines += [
        f"| artifact | as | published ms | floor ms | {' | '.join(fits)} |",
        f"|---|---|---:|---:|{'---:|' * len(fits)}",
    ]
    for entry in manifest.artifacts:
        ops = costs_of(out, manifest, entry)
        row = nearest(entry.component, sum(op.macs for op in ops))
        times = [1e3 * sum(seconds_of(op, device, one.constants) for op in ops) for one in fits.values()]
        cells = [f"{time:.1f} ({error(time, row.ms)})" for time in times]
        floor = floor_of(ops, device, sum(entry.stored.values())).ms
        lines.append(f"| {entry.file} | {row.peer} | {row.ms:g} | {floor:.1f} | {' | '.join(cells)} |")
    return [*lines, ""]


def nearest(component: str, macs: int) -> Latency:
    """The row of table 4 for such a component that is nearest in multiply-adds."""
    known = knowledge()
    rows = [row for row in known.latencies if row.device == TABLE_4 and row.peer.endswith(f"/{component}")]
    return min(rows, key=lambda row: abs(sum(op.macs * op.number for op in known.peers[row.peer]) - macs))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
