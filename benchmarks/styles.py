"""Styles at run time: bytes of each, every style proved, and latency beside fused weights.

    python benchmarks/styles.py functions [--styles 10] [--rank 16] [--small]
    python benchmarks/styles.py inputs onnx|tflite [--styles 10] [--rank 16] [--small]
    python benchmarks/styles.py latency [--rounds 15] [--small]

MD's UNet with random weights, and random LoRAs on all linear layers of its attention and feed-forward. ``functions``:
Core ML in float16, one package with a function for the base and for each style, every function verified. ``inputs``:
int8 with inputs for the styles, every style proved. One golden case for the base and two for each style. ``latency``:
the same style fused into the weights and by inputs, on onnxruntime and XNNPACK; medians of the rounds' ratios, with the
two in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from build_measure import init, recipe
from coreml_measure import Subject
from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.join import join
from md_export.engine.request import Resources
from md_export.parity.golden.surface import golden_inputs
from md_export.parity.opened_export import open_export
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import Arrays, Runner
from md_export.system.files import bytes_of
from md_export.targets import TARGETS
from side_by_side import apart, megabytes

_STRENGTH: Final = 0.05


def write_loras(checkpoint: Path, folder: Path, count: int, rank: int) -> list[Path]:
    """Write random LoRAs in float16, with the names of kohya's tool."""
    module = open_checkpoint(checkpoint).module("unet")
    layers = {
        path: layer.weight.shape
        for path, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".transformer_blocks." in path
    }
    generator, found = torch.Generator().manual_seed(0), []
    for number in range(count):
        tensors: dict[str, torch.Tensor] = {}
        for path, (rows, columns) in layers.items():
            name = f"lora_unet_{path.replace('.', '_')}"
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            up = torch.randn(rows, rank, generator=generator) * _STRENGTH
            tensors |= {f"{name}.lora_down.weight": down.half(), f"{name}.lora_up.weight": up.half()}
        found.append(folder / f"style{number}.safetensors")
        save_file(tensors, found[-1])
    return found


def one_case(target: str, precision: str) -> Recipe:
    shipped = recipe(target, precision).narrowed(("unet",))
    plan = dataclasses.replace(shipped.golden, prompts=shipped.golden.prompts[:1])
    return dataclasses.replace(shipped, golden=plan, calibration=None)


def functions(checkpoint: Path, loras: list[Path], folder: Path) -> None:
    """Export base and styles, join them, and print the bytes."""
    asked, outs, resources = one_case("coreml", "fp16"), [folder / "base"], Resources(folder / "cache")
    export(asked, checkpoint, outs[0], resources=resources)
    for lora in loras:
        outs.append(folder / lora.stem)
        export(asked.adapted((str(lora),), unfused=True), checkpoint, outs[-1], resources=resources)
    shared, verdicts = join(outs, folder / "joined")
    base = bytes_of(outs[0] / "unet.mlpackage")
    _print(base, shared[0].joined, loras, f"{len(verdicts)} functions", all(not one.failures for one in verdicts))


def inputs(checkpoint: Path, loras: list[Path], folder: Path, target: str) -> None:
    """Export base, and base with inputs for the styles, and print the bytes."""
    asked, resources = one_case(target, "int8"), Resources(folder / "cache")
    export(asked, checkpoint, folder / "base", resources=resources)
    styled = asked.styled(tuple(map(str, loras)))
    _, verdict = export(styled, checkpoint, folder / "styled", resources=resources)
    (plain,), (entry,) = (read_manifest(folder / name).artifacts for name in ("base", "styled"))
    whole = bytes_of(folder / "styled" / entry.file) + bytes_of(folder / "styled" / "styles")
    print(f"the artifact alone: {megabytes(entry.bytes)} MB, {sum(entry.ops.values())} operations")
    _print(plain.bytes, whole, loras, f"{verdict.cases} golden cases", not verdict.failures)


def _print(base: int, whole: int, loras: list[Path], proved: str, passed: bool) -> None:
    own = sum(lora.stat().st_size for lora in loras)
    print(
        f"base {megabytes(base)} MB, {len(loras)} LoRA files {megabytes(own)} MB, together {megabytes(whole)} "
        f"MB: {whole / (base + own) - 1:+.2%}; {proved} {'verified' if passed else 'NOT verified'}",
        flush=True,
    )


def latency(checkpoint: Path, lora: Path, folder: Path, rounds: int) -> None:
    """Export a style fused and by inputs, and print how much longer the second takes."""
    print("| runtime | precision | fused, ms | by inputs, ms | ratio |\n|---|---|---:|---:|---:|", flush=True)
    resources = Resources(folder / "cache")
    for target, precision in (("onnx", "fp32"), ("onnx", "int8"), ("tflite", "fp32"), ("tflite", "int8")):
        asked, named = one_case(target, precision), f"{target}-{precision}"
        export(asked.adapted((str(lora),)), checkpoint, folder / f"{named}-fused", resources=resources)
        export(asked.styled((str(lora),)), checkpoint, folder / f"{named}-inputs", resources=resources)
        pairs = apart(timed, [folder / f"{named}-{kind}" for kind in ("fused", "inputs")], rounds)
        fused, by_inputs = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        ratio = statistics.median(other / own for own, other in pairs)
        print(f"| {target} | {precision} | {fused:.0f} | {by_inputs:.0f} | {ratio:.2f} |", flush=True)


def timed(outs: list[Path], rounds: int) -> list[list[float]]:
    """Run two exports in turn, each first in every other round; return the seconds of each round."""
    runs = [*map(_prepared, outs)]
    found = []
    for number in range(rounds + 1):
        taken = [0.0, 0.0]
        for place in (0, 1) if number % 2 else (1, 0):
            runner, given = runs[place]
            begun = time.perf_counter()
            runner.run(given)
            taken[place] = time.perf_counter() - begun
        found.append(taken)
    return found[1:]


def _prepared(out: Path) -> tuple[Runner, Arrays]:
    opened = open_export(out)
    (entry,) = opened.manifest.artifacts
    target = TARGETS[opened.manifest.target].open()
    # The last case is of the style, if there is one.
    given = golden_inputs(opened.manifest.recipe, entry, opened.golden.cases[-1:])[0]
    return target.load(out / entry.file), given


def main(asked: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = folder / "checkpoint"
        apart(init, Subject("unet", small=asked.small), checkpoint)
        count = 1 if asked.what == "latency" else asked.styles
        loras = apart(write_loras, checkpoint, folder, count, asked.rank)
        if asked.what == "functions":
            functions(checkpoint, loras, folder)
        elif asked.what == "inputs":
            inputs(checkpoint, loras, folder, asked.target)
        else:
            latency(checkpoint, loras[0], folder, asked.rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("functions", "inputs", "latency"))
    parser.add_argument("target", nargs="?", choices=("onnx", "tflite"), default="onnx")
    parser.add_argument("--styles", type=int, default=10)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--small", action="store_true")
    main(parser.parse_args())
