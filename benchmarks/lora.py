"""The LoRA that ships with the nano checkpoint, on all targets: do held-out captions come out as outlines?

python benchmarks/lora.py docs/lora.png

Prints, for torch and each target, with the LoRA and without, the share of objects that are drawn as outlines, and of
those with the right shape and colour; writes a contact sheet.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contact_sheet import COLUMNS, sheet
from md_export.checkpoint.derived import adapted
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

LORA = nano_checkpoint() / "loras" / "outline.safetensors"
SHOWN = (0, 5, 11, 17, 23, 29, 35, -1, -5, -9)
Pictures = list[NDArray[np.float32]]


def main(path: Path) -> None:
    """Export, generate, count, paste."""
    sys.path.insert(0, str(nano_checkpoint()))
    from training.evaluate import held_out_scenes
    from training.outline import shares
    from training.scenes import caption

    alone, pairs = held_out_scenes(16)
    scenes = [*alone[::4], *pairs]
    requests = [(caption(scene), seed) for seed, scene in enumerate(scenes)]
    columns: dict[str, Pictures] = {"torch, no LoRA": pictures_of_checkpoint(nano_checkpoint(), requests)}
    with adapted(nano_checkpoint(), (str(LORA),)) as folder:
        columns["torch"] = pictures_of_checkpoint(folder, requests)
    with tempfile.TemporaryDirectory() as scratch:
        for title, target, precision in COLUMNS:
            recipe = load_recipe(builtin_recipe(target, precision)).adapted((str(LORA),))
            out = Path(scratch) / target
            export(recipe, nano_checkpoint(), out)
            columns[title] = pictures_of_artifacts(out, requests)
    for title, pictures in columns.items():
        found = shares(np.stack(pictures), scenes)
        print(f"{title:16}" + "  ".join(f"{name} {share:6.1%}" for name, share in found.items()), flush=True)
    chosen = {title: [pictures[index] for index in SHOWN] for title, pictures in columns.items()}
    sheet([requests[index][0] for index in SHOWN], chosen).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
