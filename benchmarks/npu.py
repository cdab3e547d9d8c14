"""The nano checkpoint on the NPUs of two generations of Snapdragon phones, by Qualcomm's compiler and simulator.

    python benchmarks/npu.py [CAPTIONS [RECIPE ...]]

By default 4 held-out captions and every ONNX recipe that an NPU is for. All figures are of those captions, on which
nothing was calibrated: SNR of each component and PSNR of the picture against torch, the worst of all, and in how many
pictures the detector finds every object right. Seconds and memory are the compiler's; no phone has to do with them.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.npu.verify import NpuDetails, verify_on_npu
from md_export.parity.verdict import ComponentVerdict, Verification
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.targets.onnx.npu.process import NpuLimits
from parity import Detector, sample

PHONES = ("snapdragon-8-gen3", "snapdragon-8-elite")
RECIPES = ("onnx-fp16", "onnx-w8a16", "onnx-w8a8")
HEADER = "| recipe | phone | component | on the NPU | compile s | GB | context bytes | SNR dB | picture dB | detector |"


def main(captions: int, names: list[str]) -> None:
    """Export, compile, simulate, print."""
    detector = Detector(sample(captions))
    print(HEADER, "|---|---|---|" + "---:|" * 7, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        held_out = Path(scratch) / "held-out"
        held_out.mkdir()
        write_golden(golden_source(open_checkpoint(nano_checkpoint())), detector.requests, held_out)
        for name in names:
            out = Path(scratch) / name
            recipe = dataclasses.replace(load_recipe(builtin_recipe(*name.split("-", 1))), npu=PHONES)
            export(recipe, nano_checkpoint(), out, None, lambda _: None)
            for phone in PHONES:
                (found,) = verify_on_npu(out, held_out, phone, None, NpuLimits(1800.0))
                print(*rows(name, phone, found, detector), sep="\n", flush=True)


def rows(name: str, phone: str, found: Verification[NpuDetails], detector: Detector) -> Iterator[str]:
    """One for each component, the picture's figures beside the last."""
    pictures = list(found.pictures)
    picture = found.result.picture.psnr_db if found.result.picture else None
    for item in found.result.components:
        last = item.component == "vae_decoder"
        score = detector.score(pictures) if pictures else "-"
        whole = ("-" if picture is None else f"{picture:.1f}", score) if last else ("", "")
        cells = (name, phone, item.component, *figures(item), *whole)
        yield f"| {' | '.join(cells)} |"


def figures(item: ComponentVerdict[NpuDetails]) -> tuple[str, ...]:
    """What the compiler and the simulator made of a component."""
    engine = item.engine
    placed = f"all {engine.nodes}" if engine.nodes else f"{len(engine.refused)} refused"
    snr_db = "-" if item.parity is None else f"{item.parity.snr_db:.1f}"
    held = f"{engine.compile_bytes / 1e9:.2f}"
    return placed, f"{engine.compile_seconds:.1f}", held, f"{engine.context_bytes:,}", snr_db


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4, sys.argv[2:] or list(RECIPES))
