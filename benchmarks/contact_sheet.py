"""Prompts × (torch, Core ML, Core AI, TFLite, ONNX, Snapdragon NPU) as one picture, every cell made by its own runtime.

python benchmarks/contact_sheet.py docs/contact-sheet.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.models.sampling.pictures import to_bytes
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.npu.verify import verify_on_npu
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.targets.onnx.npu.process import NpuLimits

# None of these combinations of shape, colour and place was trained on; see golden/nano/training/scenes.py.
COLUMNS = (
    ("Core ML fp16", "coreml", "fp16"),
    ("Core AI int8", "coreai", "int8"),
    ("TFLite int8", "tflite", "int8"),
    ("ONNX int8", "onnx", "int8"),
)
NPU_RECIPE, PHONE = ("onnx", "w8a16"), "snapdragon-8-elite"
ZOOM, GAP, HEADER, LABEL = 2, 6, 22, 330


def prompts() -> list[str]:
    """Held-out captions, spread over the grammar: six with one object, four with two."""
    sys.path.insert(0, str(nano_checkpoint()))
    from training.scenes import all_pairs, all_singles, caption, is_held_out

    singles = [scene for scene in all_singles() if is_held_out(scene)]
    pairs = [scene for scene in all_pairs() if is_held_out(scene)]
    generator = np.random.default_rng(5)
    chosen = [singles[i] for i in generator.choice(len(singles), 6, replace=False)]
    chosen += [pairs[i] for i in generator.choice(len(pairs), 4, replace=False)]
    return [caption(scene) for scene in chosen]


def main(path: Path) -> None:
    """Export, generate, paste."""
    requests = [(prompt, seed) for seed, prompt in enumerate(prompts())]
    columns = {"torch float32": pictures_of_checkpoint(nano_checkpoint(), requests)}
    with tempfile.TemporaryDirectory() as scratch:
        for title, target, precision in COLUMNS:
            out = Path(scratch) / target
            export(load_recipe(builtin_recipe(target, precision)), nano_checkpoint(), out)
            columns[title] = pictures_of_artifacts(out, requests)
        columns["8 Elite w8a16"] = on_npu(requests, Path(scratch))
    sheet([prompt for prompt, _ in requests], columns).save(path)


def on_npu(requests: list[tuple[str, int]], scratch: Path) -> list[NDArray[np.float32]]:
    """What Qualcomm's simulator makes of the prompts, each component of what the one before it made."""
    out, golden = scratch / "npu", scratch / "golden"
    golden.mkdir()
    write_golden(golden_source(open_checkpoint(nano_checkpoint())), requests, golden)
    export(load_recipe(builtin_recipe(*NPU_RECIPE)), nano_checkpoint(), out)
    (found,) = verify_on_npu(out, golden, PHONE, None, NpuLimits(1800.0))
    return list(found.pictures)


def sheet(rows: list[str], columns: dict[str, list[NDArray[np.float32]]]) -> Image.Image:
    """Rows of pictures, the prompt at the left, the runtime above."""
    side = ZOOM * next(iter(columns.values()))[0].shape[0]
    size = (LABEL + len(columns) * (side + GAP), HEADER + len(rows) * (side + GAP))
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for row, prompt in enumerate(rows):
        top = HEADER + row * (side + GAP)
        draw.text((GAP, top + side // 2), prompt, fill="black")
        for column, pictures in enumerate(columns.values()):
            cell = Image.fromarray(to_bytes(pictures[row])).resize((side, side), Image.Resampling.NEAREST)
            image.paste(cell, (LABEL + column * (side + GAP), top))
    for column, title in enumerate(columns):
        draw.text((LABEL + column * (side + GAP) + GAP, GAP), title, fill="black")
    return image


if __name__ == "__main__":
    main(Path(sys.argv[1]))
