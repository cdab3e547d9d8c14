"""Trains the T2I-Adapter that ships beside the nano checkpoint: objects stand where a picture of edges says.

Run from golden/nano: ``python -m training.adapter``. Text encoder, UNet and decoder stay as they are stored. A caption
says shape, colour and background, and roughly where the object is and how large; the edges are of the same object
moved by up to 10 pixels each way, at any size. First on latents, then on what the decoder makes of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from md_export.models.adapter import AdapterConfig, T2IAdapter
from md_export.models.vae import VAEDecoder
from training.checkpoint import NANO, WEIGHTS, load_nano
from training.evaluate import Pictures, load_stored_decoder, to_pictures
from training.fitting import fit, flags, started
from training.latents import SCALING_FACTOR, to_signed
from training.lora import stored_encoder
from training.model import LAST_STEP, Nano
from training.moved import Moved, conditions, move, shares
from training.scenes import all_singles, caption, is_held_out
from training.text import CaptionEncoder
from training.tokenizer import MAX_LENGTH
from training.train import denoising_loss

CONFIG = AdapterConfig(in_channels=1, channels=(48, 80, 96))
#: Part of the training after which the loss is of pictures.
LATENTS_UNTIL = 0.35
#: Least move of a held-out object, in pixels along x or y: one that the caption's place is not enough for.
HELD_OUT_LEAST = 5


class Batches:
    """Random training batches, nothing held out: text [B, 77, 128], edges [B, 1, 64, 64], pictures [B, 3, 64, 64]."""

    def __init__(self, model: Nano, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.scenes = [scene for scene in all_singles() if not is_held_out(scene)]
        self.text = texts(model, [caption(scene) for scene in self.scenes])

    def draw(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """``size`` captions with their edges and pictures in [-1, 1]."""
        chosen = self.rng.integers(len(self.scenes), size=size)
        moved = [move(self.scenes[index], self.rng) for index in chosen]
        pictures = np.stack([(one.draw() * 255 + 0.5).astype(np.uint8) for one in moved])
        return self.text[chosen], conditions(moved), to_signed(pictures)


@torch.no_grad()
def texts(model: Nano, captions: Sequence[str]) -> Tensor:
    """What the text encoder makes of captions, [N, 77, 128]."""
    ids = CaptionEncoder()(list(captions), MAX_LENGTH)
    return torch.cat([model.text_encoder(part).last_hidden_state for part in ids.split(128)])


def train(model: Nano, decoder: VAEDecoder, adapter: T2IAdapter, arguments: argparse.Namespace) -> T2IAdapter:
    """The same adapter, its weights the averages of :func:`training.fitting.fit`."""
    data, encoder = Batches(model, arguments.seed), stored_encoder()

    def loss_of(_step: int, part: float) -> Tensor:
        text, given, pictures = data.draw(arguments.batch)
        x0 = steered(model, text, adapter(given), torch.randn(len(text), 8, 8, 8))
        if part < LATENTS_UNTIL:
            return denoising_loss(x0, encoder(pictures))
        return denoising_loss(decoder(x0 / SCALING_FACTOR), pictures)

    fit(list(adapter.parameters()), loss_of, arguments, weight_decay=0.01)
    return adapter


def steered(model: Nano, text: Tensor, residuals: Sequence[Tensor], noise: Tensor) -> Tensor:
    """x0 [N, 8, 8, 8] of one step, with what an adapter adds."""
    v = model.unet(noise, torch.full((1,), float(LAST_STEP)), text, *residuals)
    x0: Tensor = model.noise_share * noise - model.v_share * v
    return x0


def held_out(seed: int = 13, each: int = 1) -> list[Moved]:
    """Every held-out one-object scene, its object moved far enough to be seen."""
    rng = np.random.default_rng(seed)
    scenes = [scene for scene in all_singles() if is_held_out(scene)]
    return [move(scene, rng, HELD_OUT_LEAST) for scene in scenes for _ in range(each)]


@torch.no_grad()
def made(model: Nano, decoder: VAEDecoder, adapter: T2IAdapter | None, moved: Sequence[Moved]) -> Pictures:
    """Pictures [N, 64, 64, 3] for the captions of ``moved``, with their edges where an adapter is given."""
    text = texts(model, [caption(one.scene) for one in moved])
    residuals = () if adapter is None else adapter(conditions(moved))
    noise = torch.randn(len(moved), 8, 8, 8, generator=torch.Generator().manual_seed(7))
    return to_pictures(decoder(steered(model, text, residuals, noise) / SCALING_FACTOR))


def save(adapter: T2IAdapter, out: Path) -> None:
    """A sibling of the checkpoint: what it adds is a folder as diffusers' T2IAdapter writes it, float16."""
    folder = out / "t2i_adapter"
    folder.mkdir(parents=True, exist_ok=True)
    note = {"parent": Path(os.path.relpath(NANO, out.resolve())).as_posix(), "note": "steered by a picture of edges"}
    (out / "sibling.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    config = {"_class_name": "T2IAdapter", "adapter_type": "full_adapter", **dataclasses.asdict(CONFIG)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    halves = {name: value.half().contiguous() for name, value in sorted(adapter.state_dict().items())}
    save_file(halves, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)


def load_adapter(out: Path) -> T2IAdapter:
    """The stored float16 weights in float32."""
    adapter = T2IAdapter(CONFIG)
    adapter.load_state_dict(load_file(out / "t2i_adapter" / WEIGHTS))
    return adapter.float().eval()


def main() -> None:
    """Trains, writes the folder, and prints what held-out captions with edges look like with it and without."""
    arguments = started(flags(__doc__, NANO / "adapters" / "edges", minutes=14.0, batch=32, rate=2e-3))
    model, decoder = load_nano(NANO).requires_grad_(False), load_stored_decoder(NANO).requires_grad_(False)
    save(train(model, decoder, T2IAdapter(CONFIG), arguments), arguments.out)
    moved = held_out()
    scores = {"with": load_adapter(arguments.out), "without": None}
    print(json.dumps({name: shares(made(model, decoder, one, moved), moved) for name, one in scores.items()}, indent=1))


if __name__ == "__main__":
    main()
