"""The LoRAs that ship with the nano checkpoint, by torch and by exports: do held-out captions come out in their styles?

md-export tflite --int8 --style golden/nano/loras/outline.safetensors --style … -o out/tflite-int8
md-export onnx --int8 --lora golden/nano/loras/hues.safetensors -o out/onnx-int8-fused-hues
python benchmarks/lora.py docs/lora.png out/*

An export draws in the styles that it has inputs for and without them, or in the one that is fused into its weights.
Prints, for each style and runtime, the share of objects (of pictures, where a style changes the whole picture) that are
in the style, and of those with the right shape and colour; then how much of each style is found in the pictures of the
others. Writes a contact sheet: captions and styles × runtimes that have all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contact_sheet import sheet
from md_export.checkpoint.derived import adapted
from md_export.engine.generate import Request, pictures_of_artifacts, pictures_of_checkpoint
from md_export.spec.manifest import read_manifest
from md_export.spec.shipped_files import nano_checkpoint

sys.path.insert(0, str(nano_checkpoint()))
from training.evaluate import held_out_scenes
from training.scenes import Scene, caption
from training.styles import STYLES

LORAS = nano_checkpoint() / "loras"
#: The style of the checkpoint without a LoRA.
BASE = "no LoRA"
TORCH = "torch"
SHOWN = (0, 22, 35, -5)
Pictures = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """What draws in a style: the export in a folder, or torch where there is none."""

    export: Path | None
    style: str

    @property
    def runtime(self) -> str:
        """The name of the export without its style, or torch."""
        return TORCH if self.export is None else self.export.name.removesuffix(f"-{self.style}")

    def draw(self, requests: Sequence[Request]) -> Pictures:
        """Pictures [N, 64, 64, 3] in [0, 1]."""
        if self.export is not None:
            chosen = self.style if self.style in chosen_by_input(self.export) else None
            return np.stack(pictures_of_artifacts(self.export, requests, style=chosen))
        loras = () if self.style == BASE else (str(LORAS / f"{self.style}.safetensors"),)
        with adapted(nano_checkpoint(), loras) as folder:
            return np.stack(pictures_of_checkpoint(folder, requests))


def chosen_by_input(out: Path) -> list[str]:
    """The styles that an export has inputs for."""
    return [style.name for style in read_manifest(out).styles]


def sources_of(out: Path) -> list[Source]:
    """An export in each of its styles."""
    fused = [Path(lora.name).stem for lora in read_manifest(out).loras]
    return [Source(out, style) for style in (fused or [BASE, *chosen_by_input(out)])]


def main(path: Path, exports: Sequence[Path]) -> None:
    """Draw, count, paste."""
    alone, pairs = held_out_scenes(21)
    scenes = [*alone[::3], *pairs]  # backgrounds come in turn, four of them
    requests = [(caption(scene), seed) for seed, scene in enumerate(scenes)]
    sources = [Source(None, style) for style in (BASE, *STYLES)]
    sources += [source for out in exports for source in sources_of(out)]
    made = {(source.style, source.runtime): source.draw(requests) for source in sources}
    for name, style in STYLES.items():
        for (drawn, runtime), pictures in made.items():
            if drawn in (name, BASE):
                found = style.shares(pictures, scenes)
                shares = "  ".join(f"{key} {value:6.1%}" for key, value in found.items())
                print(f"{name:9} {drawn:9} {runtime:16} {shares}", flush=True)
    print_others(made, scenes)
    every = (BASE, *STYLES)
    whole = [runtime for style, runtime in made if style == BASE and all((other, runtime) in made for other in every)]
    rows = [(style, index) for index in SHOWN for style in every]
    columns = {runtime: [made[style, runtime][index] for style, index in rows] for runtime in whole}
    sheet([f"{style}\n{requests[index][0]}" for style, index in rows], columns).save(path)


def print_others(made: dict[tuple[str, str], Pictures], scenes: Sequence[Scene]) -> None:
    """How much of each style is found in what torch draws in each: the diagonal is large, all else is small."""
    print("torch    ", *(f"{name:>9}" for name in STYLES))
    for drawn in (BASE, *STYLES):
        found = [next(iter(style.shares(made[drawn, TORCH], scenes).values())) for style in STYLES.values()]
        print(f"{drawn:9}", *(f"{share:9.1%}" for share in found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
