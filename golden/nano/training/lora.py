"""Trains the LoRA that ships beside the nano checkpoint: outlined drawings.

Run from golden/nano: ``python -m training.lora``. Text encoder, UNet and decoder stay as they are stored; only the
low-rank changes of the UNet's weights are trained, first on latents, then on what the decoder makes of them, since
the PCA of filled drawings has no room for outlines and the decoder's other inputs do.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from md_export.checkpoint.weight_change import LOW_RANK, WeightChange
from md_export.models.vae import VAEDecoder
from md_export.parity.lora_fusing import beside
from training.checkpoint import NANO, load_nano
from training.drawing import draw
from training.evaluate import held_out_scenes, load_stored_decoder, make
from training.fitting import fit, flags, started
from training.latents import SCALING_FACTOR, Encoder, fit_encoder, to_signed
from training.model import LAST_STEP, Nano
from training.outline import draw_outlines, shares
from training.scenes import Scene, all_pairs, all_singles, caption_variants, is_held_out
from training.text import CaptionEncoder
from training.train import FULL, SHORT, SINGLE_SHARE, denoising_loss

#: Two-object scenes to draw, beside all with one object.
PAIRS = 4000
#: Part of the training after which the loss is of pictures.
LATENTS_UNTIL = 0.15
FULL_FROM, FULL_EVERY = 0.85, 8


class Outlines:
    """Random training batches: ids [B, L], pictures [B, 3, 64, 64] in [-1, 1], nothing held out."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        singles = [scene for scene in all_singles() if not is_held_out(scene)]
        pairs = [scene for scene in all_pairs() if not is_held_out(scene)]
        self.singles = len(singles)
        scenes = [*singles, *(pairs[i] for i in self.rng.choice(len(pairs), PAIRS, replace=False))]
        encode = CaptionEncoder()
        self.ids = [encode(list(caption_variants(scene)), FULL) for scene in scenes]
        self.pictures = torch.from_numpy((draw_outlines(scenes) * 255 + 0.5).astype(np.uint8))

    def draw(self, size: int, length: int) -> tuple[Tensor, Tensor]:
        """`size` captions of `length` tokens with their pictures."""
        alone = round(size * SINGLE_SHARE)
        chosen = [*self.rng.integers(self.singles, size=alone)]
        chosen += [*self.rng.integers(self.singles, len(self.ids), size=size - alone)]
        ids = torch.stack([self.ids[i][self.rng.integers(len(self.ids[i]))] for i in chosen])
        return ids[:, :length], to_signed(self.pictures[chosen].numpy())


def stored_encoder() -> Encoder:
    """The PCA that the stored decoder inverts, fitted to the same scenes."""
    scenes: tuple[Scene, ...] = (*all_singles(), *all_pairs())
    sample = np.sort(np.random.default_rng(0).choice(len(scenes), 3000, replace=False))
    return fit_encoder(to_signed((draw([scenes[i] for i in sample]) * 255 + 0.5).astype(np.uint8)))


def changes_of(unet: nn.Module, rank: int) -> list[WeightChange]:
    """A change of nothing for every linear layer and ungrouped convolution but those of the time."""
    return [
        _change(path, tuple(layer.weight.shape), *_halves(layer.weight, rank))
        for path, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        if "time_emb" not in path and getattr(layer, "groups", 1) == 1
    ]


def _change(path: str, shape: tuple[int, ...], down: Tensor, up: Tensor) -> WeightChange:
    return WeightChange(path, "weight", LOW_RANK, shape, {"down": down, "up": up}, 1.0, 1.0)


def _halves(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    down = torch.randn(rank, *weight.shape[1:]) / math.sqrt(weight[0].numel())
    up = torch.zeros(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    return nn.Parameter(down), nn.Parameter(up)


def train(model: Nano, decoder: VAEDecoder, changes: list[WeightChange], arguments: argparse.Namespace) -> list[Tensor]:
    """The downs and ups, in turn: the averages of :func:`training.fitting.fit`."""
    data, encoder = Outlines(arguments.seed), stored_encoder()
    halves = [half for change in changes for half in change.parts.values()]

    def loss_of(step: int, part: float) -> Tensor:
        ids, pictures = data.draw(arguments.batch, FULL if part > FULL_FROM or step % FULL_EVERY == 0 else SHORT)
        x0 = _x0(model, changes, ids)
        if part < LATENTS_UNTIL:
            return denoising_loss(x0, encoder(pictures))
        return denoising_loss(decoder(x0 / SCALING_FACTOR), pictures)

    fit(halves, loss_of, arguments)
    return [half.detach() for half in halves]


def _x0(model: Nano, changes: list[WeightChange], ids: Tensor) -> Tensor:
    with torch.no_grad():
        text = model.text_encoder(ids).last_hidden_state
    noise = torch.randn(len(ids), 8, 8, 8)
    with beside(model.unet, changes):
        v = model.unet(noise, torch.full((1,), float(LAST_STEP)), text)
    x0: Tensor = model.noise_share * noise - model.v_share * v
    return x0


def save(changes: list[WeightChange], halves: list[Tensor], path: Path) -> None:
    """A file in the form of diffusers and peft, float16; alpha is the rank."""
    tensors = {}
    for change, down, up in zip(changes, halves[::2], halves[1::2], strict=True):
        tensors[f"unet.{change.module}.lora_A.weight"] = down.half().contiguous()
        tensors[f"unet.{change.module}.lora_B.weight"] = up.half().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)


def main() -> None:
    """Trains, writes the file, and prints what held-out captions look like with it and without."""
    parser = flags(__doc__, NANO / "loras" / "outline.safetensors", minutes=4.5, batch=32, rate=4e-3)
    parser.add_argument("--rank", type=int, default=3)
    arguments = started(parser)
    model, decoder = load_nano(NANO).requires_grad_(False), load_stored_decoder(NANO).requires_grad_(False)
    changes = changes_of(model.unet, arguments.rank)
    halves = train(model, decoder, changes, arguments)
    save(changes, halves, arguments.out)
    stored = [
        _change(change.module, change.shape, down.half(), up.half())
        for change, down, up in zip(changes, halves[::2], halves[1::2], strict=True)
    ]
    scenes = [scene for part in held_out_scenes(120) for scene in part]
    plain = shares(make(model, decoder, scenes).pictures, scenes)
    with beside(model.unet, stored):
        styled = shares(make(model, decoder, scenes).pictures, scenes)
    print(json.dumps({"with": styled, "without": plain}, indent=1))


if __name__ == "__main__":
    main()
