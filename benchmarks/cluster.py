"""What one checkpoint × 4 targets × 5 precisions × 3 sizes × 50 LoRAs costs on a Dask cluster, and how far it scales.

    python benchmarks/cluster.py plan FOLDER [--small] [--loras 50] [--sizes 3] [--memory 16] [--gbit 10]
                                             [--store-gbit 40]
    python benchmarks/cluster.py check FOLDER [RECIPE ...]

``plan`` makes the plan with the engine's own planner, for a random full-size MD (--small: the nano checkpoint) and
random LoRAs of rank 16 for all linear layers of its UNet, which stay in FOLDER. It then simulates the plan on 1 to 64
workers, each with --memory GB and a link of --gbit, whose transfers together are at most --store-gbit. The order of the
steps is that of md_export/engine/schedule.py; their seconds are those of FULL_SIZE, else those that the engine's cost
model predicts. ``check`` builds recipes of the nano checkpoint on a real cluster of two worker processes and compares
the end of each step with the simulation of the same plan. Results: docs/scale.md.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cluster_simulation import HASHED, Network, Work, simulate
from md_export.checkpoint.architectures import arch_config, write_checkpoint
from md_export.engine.build_recipe import load_recipes
from md_export.engine.dependencies import source_of
from md_export.engine.export import build
from md_export.engine.inputs import READ, planned
from md_export.engine.keys import files_in
from md_export.engine.plan import ArtifactRequest, Cost, Plan, Step
from md_export.engine.request import BuildRequest
from md_export.engine.running import Listener
from md_export.engine.schedule import Limits, Schedule, longest_chains
from md_export.engine.shared_store import Store
from md_export.spec.names import whole_of
from md_export.spec.shipped_files import nano_checkpoint
from side_by_side import print_table

PRECISIONS: Final = {
    "coreml": ("fp16", "fp32", "int8", "palette6", "w8a8"),
    "tflite": ("fp16", "fp32", "int8", "int8-weights", "int8-static"),
    "onnx": ("fp16", "fp32", "int8", "int8-weights", "w8a8"),
    "coreai": ("fp16", "fp32", "int8", "palette6", "w8a8"),
}
SIZES: Final = {False: ("512", "[512, 768]", "[768, 512]"), True: ("96", "[96, 128]", "[128, 96]")}
WORKERS: Final = (1, 2, 4, 8, 16, 32, 64)
CASES: Final = ("golden", "calibration")
# Recipes of ``check``.
RECIPES: Final = (
    *("onnx-fp32", "onnx-fp16", "onnx-int8", "onnx-int8-weights", "coreml-fp16", "coreml-int8", "coreml-palette6"),
    *("tflite-fp16", "tflite-int8", "coreai-int8"),
)
# Seconds of text encoder, UNet, decoder and verification at full size, 512² pixels, 2 cores (0: not measured), from
# docs/benchmarks.md: "The whole build"; for ONNX, whose seconds there are too high, those of "ONNX" and 3 s each for
# libraries and the run of the rewritten module, which "Memory and time of an export" has besides; "Core AI".
FULL_SIZE: Final[Mapping[str, tuple[float, ...]]] = {
    "coreml-fp16": (29, 70, 24, 114),
    "coreml-int8": (34, 72, 23, 109),
    "tflite-fp16": (28, 81, 31, 57),
    "tflite-int8": (28, 78, 34, 22),
    "onnx-fp16": (10, 26, 6, 51),
    "onnx-fp32": (9, 26, 6, 51),
    "coreai-fp32": (19, 56, 28, 0),
}
_NOTHING: Final = (0.0,) * 4
_PLACES: Final = ("text_encoder", "unet", "vae_decoder", "export")
# One golden or calibration case by torch, in the same build: 249 s for 16.
CASE_S: Final = 15.6
# Processor seconds per second of the clock on 2 cores, in whole exports (docs/benchmarks.md); of others: the largest.
PROCESSOR: Final = {"coreml": 1.29, "onnx": 1.33, "tflite": 1.21}
# Bytes of an export's tokenizer and manifest.
_BESIDE: Final = 5_000_000


class Estimate:
    """Work of a plan's steps: bytes from the checkpoint and the schemes, seconds from FULL_SIZE or the cost model.

    Attributes:
        seconds: of all steps so far, by where they come from.
        predicted: what the cost model predicts for those that are measured.
    """

    def __init__(self, checkpoint: Path, loras: Sequence[Path], full_size: bool) -> None:
        self._source, self._full_size = source_of(checkpoint, None, set()), full_size
        self._inputs = {"checkpoint": _size_of_checkpoint(checkpoint)}
        self._inputs |= {f"lora {number}": file.stat().st_size for number, file in enumerate(loras)}
        self.seconds, self.predicted = defaultdict[str, float](float), 0.0

    def __call__(self, step: Step) -> Work:
        recipe, kind, made = step.request.recipe, step.kind, _BESIDE
        area = self._source.area(recipe)
        # The label of a step that computes cases begins with their number.
        cases = int(found[0]) if kind in CASES and (found := re.findall(r"^\d+", step.label)) else 0
        measured = cases * CASE_S
        if isinstance(step.request, ArtifactRequest):
            kind = whole_of(step.request.component)
            bits = int(re.findall(r"\d+$", recipe.schemes[step.request.component].weights)[0])
            made = self._source.weights[kind] * bits // 32
        elif cases:
            # Most of a case is the picture, 3 float32 values for each pixel.
            made = round(cases * 1.15 * 12 * math.prod(self._source.checkpoint.config.picture_shape) * area)
        if kind in _PLACES:
            measured = FULL_SIZE.get(_precision(recipe.name), _NOTHING)[_PLACES.index(kind)]
        if not measured or not self._full_size:
            origin, seconds = "predicted by the cost model", step.cost.seconds
        elif area > 1 and kind not in ("text_encoder", "unet"):
            origin, seconds = "measured at 512² and multiplied by the area", measured * area
        else:
            origin, seconds = "measured at full size", measured
        self.seconds[origin] += seconds
        self.predicted += step.cost.seconds if measured and self._full_size else 0.0
        names = ("checkpoint", *(name for name, _ in step.request.loras))
        return Work(seconds, made, {name: self._inputs[name] for name in names})


def _precision(name: str) -> str:
    """``onnx-int8-weights`` for the recipe ``onnx-int8-weights-512-style00``."""
    known = [f"{target}-{precision}" for target, precisions in PRECISIONS.items() for precision in precisions]
    return max((one for one in known if f"{name}-".startswith(f"{one}-")), key=len)


def _size_of_checkpoint(folder: Path) -> int:
    return sum((folder / name).stat().st_size for name in files_in(folder, READ))


def write_loras(folder: Path, checkpoint: Path, count: int) -> list[Path]:
    """Random LoRAs of rank 16 in float16 for all linear layers of the UNet."""
    import torch
    from safetensors.torch import save_file

    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.modules import build_on_meta
    from md_export.models.families import component_of

    config = open_checkpoint(checkpoint).config
    layers = build_on_meta(component_of(config, "unet"), config).named_modules()
    sizes = {path: (one.in_features, one.out_features) for path, one in layers if isinstance(one, torch.nn.Linear)}
    files = [folder / f"style{number:02}.safetensors" for number in range(count)]
    for number, file in enumerate(files):
        torch.manual_seed(number)
        halves = {}
        for path, (columns, rows) in sizes.items():
            halves[f"unet.{path}.lora_A.weight"] = torch.randn(16, columns).half() / 100
            halves[f"unet.{path}.lora_B.weight"] = torch.randn(rows, 16).half() / 100
        if not file.exists():
            save_file(halves, file)
    return files


def make_plan(folder: Path, checkpoint: Path, loras: Sequence[Path], sizes: Sequence[str]) -> Plan:
    """The engine's plan for all targets and precisions: one build recipe for each target."""
    for target, precisions in PRECISIONS.items():
        lines = f'name = "{target}"', "[matrix]", f"targets = {[target]}", f"precisions = {list(precisions)}"
        sets = f"loras = {[[file.name] for file in loras]}"
        (folder / f"{target}.toml").write_text("\n".join((*lines, f"sizes = [{', '.join(sizes)}]", sets)))
    recipes = load_recipes(folder / f"{target}.toml" for target in PRECISIONS)
    started = time.perf_counter()
    plan = planned(BuildRequest(recipes, checkpoint, folder / "out", folder / "cache"))
    print(f"{len(recipes)} recipes planned in {time.perf_counter() - started:.0f} s", flush=True)
    return plan


def report(plan: Plan, works: Mapping[str, Work], memory: int, network: Network) -> None:
    """Print which steps are shared, what they cost, and how each number of workers does."""
    kinds = Counter(step.kind for step in plan.steps)
    alone = Counter(kind for export in plan.exports for kind in _kinds(plan, export.key))
    pairs = [(kind, alone[kind], count) for kind, count in kinds.items()] + [("all", alone.total(), kinds.total())]
    rows = [f"{kind} | {before:,} | {count:,} | {1 - count / before:.0%}" for kind, before, count in pairs]
    print_table("Steps", "kind | each export by itself | in the plan | shared", rows)

    groups: dict[str, list[Step]] = {}
    for step in plan.steps:
        groups.setdefault("cases by torch" if step.kind in CASES else step.request.recipe.target, []).append(step)
    rows = [_cost(name, steps, works) for name, steps in (*groups.items(), ("all", plan.steps))]
    print_table("Cost", "target | steps | worker hours | processor hours | GB made | largest step GB", rows)
    shipped = sum(works[key].made for export in plan.exports for key in (*plan.step(export.key).needs, export.key))
    print(f"all exports in their folders: {shipped / 1e9:,.0f} GB\n")

    rows = []
    for gigabytes in (4, 6, 8, 12, 16):
        failures = Schedule(plan.steps, Limits(1, gigabytes * 10**9, apart=True)).failures
        large = sum(not failure.follows for failure in failures.values())
        rows.append(f"{gigabytes} | {large:,} | {sum(export.key in failures for export in plan.exports):,}")
    print_table("Memory of each worker", "GB | steps that do not fit | exports that are not built", rows)

    timed = [replace(step, cost=replace(step.cost, seconds=works[step.key].seconds)) for step in plan.steps]
    longest = max(longest_chains(timed).values())
    # Without predicted times, the schedule keeps the order of the plan.
    in_order = [replace(step, cost=replace(step.cost, seconds=0.0)) for step in plan.steps]
    rows, first = [], 0.0
    for count in WORKERS:
        limits = Limits(count, memory, apart=True)
        found = simulate(plan.steps, works, limits, network)
        other = simulate(in_order, works, limits, network)
        first = first or found.makespan
        # Lower bounds of the makespan: the largest says what limits it.
        bounds = {
            "work": found.worked / count,
            "longest chain": longest,
            "store": found.moved / network.store,
            "client": found.placing,
        }
        cells = [f"{found.makespan / 3600:.2f}", f"{first / found.makespan:.1f}"]
        cells += [
            f"{bounds['work'] / found.makespan:.0%}",
            f"{found.moved / 1e12:.2f}",
            max(bounds, key=bounds.__getitem__),
        ]
        rows.append(
            " | ".join(
                (
                    str(count),
                    *cells,
                    *(f"{hours / 3600:.2f}" for hours in bounds.values()),
                    f"{other.makespan / 3600:.2f}",
                )
            )
        )
    head = "workers | hours | speed-up | utilisation | TB moved | largest bound | work | longest chain | store | client"
    print_table("Workers", f"{head} | in the order of the plan, hours", rows)


def _kinds(plan: Plan, key: str) -> list[str]:
    """Kinds of the steps that an export would have alone; a shared artifact has the cases of another one."""
    last = plan.step(key)
    needs = [plan.step(need) for need in last.needs]
    cases = {plan.step(need).kind for step in needs for need in step.needs}
    return [last.kind, *(step.kind for step in needs if step.kind not in CASES), *cases]


def _cost(name: str, steps: Sequence[Step], works: Mapping[str, Work]) -> str:
    hours = [works[step.key].seconds / 3600 for step in steps]
    most = max(PROCESSOR.values())
    processor = sum(
        PROCESSOR.get(one.request.recipe.target, most) * spent for one, spent in zip(steps, hours, strict=True)
    )
    made, peak = sum(works[step.key].made for step in steps), max(step.cost.peak_bytes for step in steps)
    return f"{name} | {len(steps):,} | {sum(hours):,.1f} | {processor:,.1f} | {made / 1e9:,.0f} | {peak / 1e9:.1f}"


class _Recorder(Listener):
    """Seconds after the first step's start at which each step ended, and what it took."""

    def __init__(self) -> None:
        self.ends: dict[str, float] = {}
        self.costs: dict[str, Cost] = {}
        self.begun = 0.0

    def line(self, text: str) -> None:
        print(text, flush=True)

    def planned(self, steps: tuple[Step, ...], cached: tuple[Step, ...], limits: Limits) -> None:
        assert not cached
        self.steps, self.limits, self.begun = steps, limits, time.perf_counter()

    def finished(self, step: Step, cost: Cost) -> None:
        self.ends[step.key], self.costs[step.key] = time.perf_counter() - self.begun, cost
        print(f"{self.ends[step.key]:6.0f} s  {step.label}: {cost.seconds:.0f} s", flush=True)


def check(folder: Path, names: Sequence[str]) -> None:
    """Build recipes on a cluster of two worker processes; compare with the simulation."""
    distributed: Any = importlib.import_module("distributed")
    scheduler = {"cls": distributed.Scheduler, "options": {"dashboard_address": None, "host": "127.0.0.1", "port": 0}}
    workers = {}
    for name in ("worker-1", "worker-2"):
        options = {"nthreads": 1, "env": {"MD_EXPORT_CACHE": str(folder / name)}, "local_directory": str(folder)}
        workers[name] = {"cls": distributed.Nanny, "options": options}
    nano, recorder, store = nano_checkpoint(), _Recorder(), Store(f"file://{folder}/store")
    recipes = load_recipes(map(Path, names))
    with distributed.SpecCluster(workers, scheduler) as cluster:
        where = {"dask": cluster.scheduler_address, "store": store.url}
        request = BuildRequest(recipes, nano, folder / "out", folder / "cache", most_bytes=8 * 10**9, **where)
        outcome = build(request, recorder)
    assert not outcome.failures, outcome.failures
    inputs, disk, rows = {"checkpoint": _size_of_checkpoint(nano)}, Network(HASHED, HASHED), []
    sizes = {step.key: entry.bytes for step in recorder.steps if (entry := store.read(step.key))}
    for title, costs in (
        ("the cost model", {step.key: step.cost for step in recorder.steps}),
        ("what each step took", recorder.costs),
    ):
        works = {key: Work(cost.seconds, sizes[key], inputs) for key, cost in costs.items()}
        replay = simulate(recorder.steps, works, recorder.limits, disk)
        ratios = [replay.ends[key] / end for key, end in recorder.ends.items()]
        low, middle, high = statistics.quantiles(ratios, n=4)
        predicted, measured = max(replay.ends.values()), max(recorder.ends.values())
        cells = f"{predicted:.0f} | {measured:.0f} | {predicted / measured:.2f}"
        rows.append(f"{title} | {cells} | {middle:.2f} ({low:.2f} to {high:.2f})")
    head = "seconds by | predicted s | measured s | ratio | end of each step, predicted / measured: median (quartiles)"
    print_table(f"{len(recorder.steps)} steps of {len(names)} recipes on 2 workers", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("plan", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--loras", type=int, default=50)
    parser.add_argument("--sizes", type=int, default=3)
    parser.add_argument("--memory", type=float, default=16)
    parser.add_argument("--gbit", type=float, default=10)
    parser.add_argument("--store-gbit", type=float, default=40)
    asked = parser.parse_args()
    folder: Path = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if asked.what == "check":
        check(folder, asked.recipes)
        return
    checkpoint = nano_checkpoint() if asked.small else folder / "md"
    if not checkpoint.exists():
        write_checkpoint(checkpoint, arch_config("md"), 0)
    loras = write_loras(folder, checkpoint, asked.loras)
    plan = make_plan(folder, checkpoint, loras, SIZES[asked.small][: asked.sizes])
    estimate = Estimate(checkpoint, loras, not asked.small)
    works = {step.key: estimate(step) for step in plan.steps}
    for origin, seconds in estimate.seconds.items():
        print(f"{seconds / 3600:.1f} worker hours {origin}")
    print(f"of those measured, the cost model predicts {estimate.predicted / 3600:.1f} worker hours\n")
    report(plan, works, round(asked.memory * 1e9), Network(asked.gbit * 1e9 / 8, asked.store_gbit * 1e9 / 8))


if __name__ == "__main__":
    main()
