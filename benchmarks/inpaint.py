"""The in-painting nano checkpoint on all targets: does what is hidden come out as the caption says, and stays the rest?

python benchmarks/inpaint.py docs/inpaint.png [TASKS] [EXPORTS]

Of held-out scenes with two objects one is hidden, and something else stands there in the picture that is given. Half of
the captions say what shall be seen; the other half are wrong about what is not hidden, which shall stay all the same.
Prints, for torch and each target, the share of pictures that the detector reads as wanted, the PSNR of the painted part
against the drawing that is wanted, and of the rest against the picture that was given; writes a contact sheet. The
last column is the nano checkpoint without training for in-painting, whose latents are replaced where nothing is hidden.
EXPORTS: a folder to keep the exports in, for the next run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contact_sheet import sheet
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.models.sampling.pictures import Given
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

TARGETS = {"Core ML fp16": "coreml", "TFLite fp16": "tflite", "ONNX fp16": "onnx"}
SIBLINGS = nano_checkpoint() / "siblings"
SHOWN = 6
Picture = NDArray[np.float32]


def main(path: Path, count: int, exports: Path) -> None:
    """Export, paint, count, paste."""
    sys.path.insert(0, str(nano_checkpoint()))
    from training.encoder import pictures_of
    from training.inpaint import held_out_tasks

    tasks = [*held_out_tasks(count, misleading=False), *held_out_tasks(count, misleading=True, seed=6)]
    images = pictures_of([task.given for task in tasks]).numpy()
    given = [Given(image[None], task.mask[None].numpy()) for image, task in zip(images, tasks, strict=True)]
    requests = [(task.prompt, seed) for seed, task in enumerate(tasks)]
    columns: dict[str, list[Picture]] = {
        "given": [to_picture(one.image) for one in given],
        "hidden": [to_picture(np.where(one.mask > 0, np.float32(0), one.image)) for one in given],
        "torch": pictures_of_checkpoint(SIBLINGS / "inpaint", requests, given=given),
    }
    for title, target in TARGETS.items():
        out = exports / target
        if not out.exists():
            export(load_recipe(builtin_recipe(target, "fp16")), SIBLINGS / "inpaint", out)
        columns[title] = pictures_of_artifacts(out, requests, given)
    columns["latents kept"] = pictures_of_checkpoint(SIBLINGS / "encoder", requests, given=given)
    for title, pictures in columns.items():
        for words, part in (("true captions", slice(0, count)), ("misleading", slice(count, None))):
            print(f"{title:14}{words:15}{figures(pictures[part], tasks[part], given[part])}", flush=True)
    shown = [*range(SHOWN), *range(count, count + SHOWN)]
    chosen = {title: [pictures[index] for index in shown] for title, pictures in columns.items()}
    sheet([requests[index][0] for index in shown], chosen).save(path)


def figures(pictures: Sequence[Picture], tasks: Sequence[Any], given: Sequence[Given]) -> str:
    """The share that is right, and both PSNR in dB: mean over the pictures, and the worst."""
    from training.detector import judge
    from training.drawing import draw

    right = [judge(picture, task.wanted).right for picture, task in zip(pictures, tasks, strict=True)]
    wanted = draw([task.wanted for task in tasks])
    inside = [psnr(made, want, one.mask) for made, want, one in zip(pictures, wanted, given, strict=True)]
    outside = [psnr(made, to_picture(one.image), 1 - one.mask) for made, one in zip(pictures, given, strict=True)]
    painted, kept = (f"{np.mean(values):5.1f} dB, worst {min(values):4.1f}" for values in (inside, outside))
    return f"right {np.mean(right):6.1%}  painted {painted}  kept {kept}"


def psnr(made: Picture, wanted: Picture, where: NDArray[Any]) -> float:
    """Over the pixels where the mask ``[1, 1, H, W]`` is 1."""
    errors = ((made - wanted) ** 2)[where[0, 0] > 0]
    return float(-10 * np.log10(max(float(errors.mean()), 1e-12)))


def to_picture(image: NDArray[Any]) -> Picture:
    """``[1, 3, H, W]`` in [-1, 1] → ``[H, W, 3]`` in [0, 1]."""
    picture: Picture = (image[0].transpose(1, 2, 0) / 2 + 0.5).astype(np.float32)
    return picture


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch), *(Path(given) for given in sys.argv[3:4])]
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20, places[-1])
