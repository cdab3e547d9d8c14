"""Image-to-image in one step with the nano checkpoint: what is taken from the picture, and what from the caption?

python benchmarks/image_to_image.py docs/image-to-image.png [COUNT] [EXPORT]

Pictures to start from: held-out objects off the places that captions know, in another colour than the caption says.
Prints, by strength, the share of objects that stand where they stood (75 % of what both masks cover, as
benchmarks/adapter.py counts), the mean of what the masks share, and the share that has the caption's colour; by torch,
and how far the pictures of ONNX fp16 artifacts are from torch's. Writes a contact sheet. EXPORT: a folder to keep the
export in.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contact_sheet import sheet
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.models.sampling.pictures import Start
from md_export.parity.metrics import compare
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

ENCODER = nano_checkpoint() / "siblings" / "encoder"
STRENGTHS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
ROWS = 6


def main(path: Path, count: int, out: Path) -> None:
    """Export, generate, measure, paste."""
    sys.path.insert(0, str(nano_checkpoint()))
    from training.adapter import held_out
    from training.moved import shares
    from training.scenes import caption

    if not out.exists():
        export(load_recipe(builtin_recipe("onnx", "fp16")).widened(("vae_encoder",)), ENCODER, out)
    every = held_out()
    moved = [every[index] for index in np.linspace(0, len(every) - 1, count).astype(int)]
    requests = [(caption(one.scene), seed) for seed, one in enumerate(moved)]
    given = [recoloured(one).draw() for one in moved]
    columns: dict[str, list[NDArray[np.float32]]] = {"given": given}
    for strength in STRENGTHS:
        starts = [Start(np.ascontiguousarray(one.transpose(2, 0, 1)[None] * 2 - 1), strength) for one in given]
        made = pictures_of_checkpoint(ENCODER, requests, starts=starts)
        columns[f"{strength:g}"] = made
        found = shares(np.stack(made), moved)
        pairs = zip(pictures_of_artifacts(out, requests, starts=starts), made, strict=True)
        worst = min(compare(one, other).psnr_db for one, other in pairs)
        figures = "  ".join(f"{name} {share:6.1%}" for name, share in found.items())
        print(f"strength {strength:<5g}{figures}  ONNX fp16 against torch, worst PSNR {worst:.1f} dB", flush=True)
    shown = np.linspace(0, count - 1, ROWS).astype(int)
    chosen = {title: [pictures[index] for index in shown] for title, pictures in columns.items()}
    sheet([requests[index][0] for index in shown], chosen).save(path)


def recoloured(moved: Any) -> Any:
    """The same object in the colour that follows in the grammar's list."""
    from training.scenes import COLOURS

    (item,) = moved.scene.items
    other = COLOURS[(COLOURS.index(item.colour) + 3) % len(COLOURS)]
    return replace(moved, scene=replace(moved.scene, items=(replace(item, colour=other),)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(scratch) / "onnx"
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 44, kept)
