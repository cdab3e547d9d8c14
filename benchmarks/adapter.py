"""The adapter that ships with the nano checkpoint, on all targets: do held-out objects stand where their edges say?

python benchmarks/adapter.py docs/adapter.png [COUNT]

Prints, for torch and each target, the share of objects whose mask covers that of the drawing whose edges were given
(at least 75 % of what both cover), the mean of that, and the share with the right shape and colour; first without the
adapter. Writes a contact sheet.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contact_sheet import COLUMNS, sheet
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.models.adapter import edges
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

STEERED = nano_checkpoint() / "adapters" / "edges"
ROWS = 10
Pictures = list[NDArray[np.float32]]


def main(path: Path, count: int) -> None:
    """Export, generate, measure, paste."""
    sys.path.insert(0, str(nano_checkpoint()))
    from training.adapter import held_out
    from training.moved import shares
    from training.scenes import caption

    every = held_out()
    moved = [every[index] for index in np.linspace(0, len(every) - 1, count).astype(int)]
    requests = [(caption(one.scene), seed) for seed, one in enumerate(moved)]
    conditions = [edges(one.draw()) for one in moved]
    columns: dict[str, Pictures] = {
        "edges": [np.repeat(condition[0, 0, :, :, None], 3, axis=2) for condition in conditions],
        "torch, no adapter": pictures_of_checkpoint(nano_checkpoint(), requests),
        "torch": pictures_of_checkpoint(STEERED, requests, conditions=conditions),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for title, target, precision in COLUMNS:
            out = Path(scratch) / target
            export(load_recipe(builtin_recipe(target, precision)), STEERED, out)
            columns[title] = pictures_of_artifacts(out, requests, conditions=conditions)
    for title, pictures in list(columns.items())[1:]:
        found = shares(np.stack(pictures), moved)
        print(f"{title:18}" + "  ".join(f"{name} {share:6.1%}" for name, share in found.items()), flush=True)
    shown = np.linspace(0, count - 1, ROWS).astype(int)
    chosen = {title: [pictures[index] for index in shown] for title, pictures in columns.items()}
    sheet([requests[index][0] for index in shown], chosen).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 44)
