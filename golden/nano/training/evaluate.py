"""Scores the stored checkpoint on held-out captions: what the detector sees, and how siblings compare.

Run from golden/nano: ``python -m training.evaluate [--pairs 600] [--sheet sheet.png]``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from md_export.models.vae import VAEDecoder
from training.checkpoint import NANO, WEIGHTS, load_nano
from training.contact_sheet import sheet, write_png
from training.detector import judge
from training.drawing import draw
from training.latents import SCALING_FACTOR
from training.model import Nano, unet_config, vae_config
from training.scenes import Scene, all_pairs, all_singles, caption, is_held_out
from training.text import CaptionEncoder
from training.tokenizer import MAX_LENGTH

Pictures = NDArray[np.float32]
QUESTIONS = ("right", "count", "shape", "colour", "place", "background")


@dataclass(frozen=True)
class Made:
    """What a model makes of some scenes: x0 [N, 8, 8, 8] and pictures [N, 64, 64, 3] in [0, 1]."""

    x0: Tensor
    pictures: Pictures


def held_out_scenes(pairs: int) -> tuple[list[Scene], list[Scene]]:
    """Every held-out one-object scene, and `pairs` held-out two-object scenes drawn with a fixed seed."""
    two = [scene for scene in all_pairs() if is_held_out(scene)]
    chosen = np.random.default_rng(11).choice(len(two), min(pairs, len(two)), replace=False)
    return [scene for scene in all_singles() if is_held_out(scene)], [two[i] for i in chosen]


def load_stored_decoder(folder: Path) -> VAEDecoder:
    """The stored float16 decoder in float32."""
    decoder = VAEDecoder(vae_config())
    decoder.load_state_dict(load_file(folder / "vae" / WEIGHTS))
    return decoder.float().eval()


@torch.no_grad()
def make(model: Nano, decoder: VAEDecoder, scenes: Sequence[Scene], seed: int = 7) -> Made:
    """One step from noise for each scene's full caption, at 77 tokens."""
    encode = CaptionEncoder()
    noise = torch.randn(len(scenes), 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    x0, pictures = [], []
    for start in range(0, len(scenes), 64):
        part = slice(start, start + 64)
        ids = encode([caption(scene) for scene in scenes[part]], MAX_LENGTH)
        x0.append(model(ids, noise[part]))
        pictures.append(to_pictures(decoder(x0[-1] / SCALING_FACTOR)))
    return Made(torch.cat(x0), np.concatenate(pictures))


def to_pictures(decoded: Tensor) -> Pictures:
    """[N, 3, H, W] in [-1, 1] -> [N, H, W, 3] clamped to [0, 1]."""
    pictures: Pictures = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return pictures


def shares(pictures: Pictures, scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of pictures for which each of QUESTIONS is right."""
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    return {name: float(np.mean([getattr(verdict, name) for verdict in verdicts])) for name in QUESTIONS}


def psnr(made: Pictures, wanted: Pictures) -> float:
    """Mean over pictures of the peak signal-to-noise in dB; pictures in [0, 1]."""
    errors = ((made - wanted) ** 2).mean((1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-12))))


def snr(made: Tensor, wanted: Tensor) -> float:
    """Signal-to-noise in dB over everything."""
    return float(10 * torch.log10(wanted.square().sum() / (made - wanted).square().sum()))


def substituted(folder: Path, activation: str, attention: str) -> Nano:
    """The parent's weights in a UNet with another activation or attention, untrained."""
    parent = load_nano(folder)
    model = Nano(parent.text_encoder.config.vocab_size, unet_config(activation, attention))
    model.load_state_dict(parent.state_dict())
    return model.eval()


def report(folder: Path, pairs: int, sheet_path: Path | None) -> dict[str, dict[str, float]]:
    """Every model's scores by name: parent, siblings, and siblings without their training."""
    singles, doubles = held_out_scenes(pairs)
    scenes, drawn = [*singles, *doubles], draw([*singles, *doubles])
    decoder = load_stored_decoder(folder)
    models = {
        "parent": load_nano(folder),
        "gelu untrained": substituted(folder, "gelu", "softmax"),
        "gelu": load_nano(folder, "gelu"),
        "relu untrained": substituted(folder, "swish", "relu"),
        "relu": load_nano(folder, "relu"),
    }
    made = {name: make(model, decoder, scenes) for name, model in models.items()}
    if sheet_path:
        _write_sheet(sheet_path, len(singles), drawn, [one.pictures for one in made.values()])
    return {name: _scores(one, made["parent"], scenes, len(singles), drawn) for name, one in made.items()}


def _scores(made: Made, parent: Made, scenes: Sequence[Scene], singles: int, drawn: Pictures) -> dict[str, float]:
    single = shares(made.pictures[:singles], scenes[:singles])
    double = shares(made.pictures[singles:], scenes[singles:])
    together = shares(made.pictures, scenes)
    scores = {f"one object: {name}": value for name, value in single.items()}
    scores |= {f"two objects: {name}": value for name, value in double.items()}
    scores |= {"all: right": together["right"], "PSNR to the drawn picture, dB": psnr(made.pictures, drawn)}
    if made is not parent:
        scores["x0 MSE to the parent"] = float((made.x0 - parent.x0).square().mean())
        scores["x0 SNR to the parent, dB"] = snr(made.x0, parent.x0)
        scores["PSNR to the parent's picture, dB"] = psnr(made.pictures, parent.pictures)
    return scores


def _write_sheet(path: Path, singles: int, drawn: Pictures, made: list[Pictures]) -> None:
    """Per block of ten scenes: the drawn pictures, then each model's."""
    step = max(1, singles // 10)
    blocks = (list(range(0, step * 10, step)), *(list(range(singles + i, singles + i + 10)) for i in (0, 10)))
    write_png(path, sheet([pictures[block] for block in blocks for pictures in (drawn, *made)]))


def main() -> None:
    """Prints the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=NANO)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scores = report(arguments.folder, arguments.pairs, arguments.sheet)
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
