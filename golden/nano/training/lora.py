"""Trains a LoRA of the nano checkpoint that draws in one of the styles of ``styles.py``.

Run from golden/nano: ``python -m training.lora STYLE``. Text encoder, UNet and decoder stay as they are stored; only
the low-rank changes of the UNet's weights are trained, first on latents, then on what the decoder makes of them, since
the PCA of plain drawings has no room for outlines or stripes and the decoder's other inputs do.
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

from md_export.checkpoint.lora import changes_of, open_lora
from md_export.checkpoint.lora_names import Part
from md_export.checkpoint.weight_change import LOW_RANK, WeightChange
from md_export.models.vae import VAEDecoder
from md_export.parity.lora_fusing import beside
from md_export.spec.loras import parse_lora
from training.checkpoint import NANO, load_nano
from training.drawing import draw
from training.evaluate import held_out_scenes, load_stored_decoder, make
from training.fitting import fit, flags, started
from training.latents import SCALING_FACTOR, Encoder, fit_encoder, to_signed
from training.model import LAST_STEP, Nano
from training.reading import Draw
from training.scenes import Scene, all_pairs, all_singles, caption_variants, is_held_out
from training.styles import STYLES, Style
from training.text import CaptionEncoder
from training.train import FULL, SHORT, SINGLE_SHARE, denoising_loss

#: Two-object scenes to draw, beside all with one object.
PAIRS = 4000
#: Part of the training after which the loss is of pictures.
LATENTS_UNTIL = 0.15
FULL_FROM, FULL_EVERY = 0.85, 8


class Batches:
    """Random training batches: ids [B, L], pictures [B, 3, 64, 64] in [-1, 1], nothing held out."""

    def __init__(self, draw_styled: Draw, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        singles = [scene for scene in all_singles() if not is_held_out(scene)]
        pairs = [scene for scene in all_pairs() if not is_held_out(scene)]
        self.singles = len(singles)
        scenes = [*singles, *(pairs[i] for i in self.rng.choice(len(pairs), PAIRS, replace=False))]
        encode = CaptionEncoder()
        self.ids = [encode(list(caption_variants(scene)), FULL) for scene in scenes]
        self.pictures = torch.from_numpy((draw_styled(scenes) * 255 + 0.5).astype(np.uint8))

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


def no_changes(unet: nn.Module, style: Style) -> list[WeightChange]:
    """A change of nothing for the style's linear layers and ungrouped convolutions, except those of the time."""
    return [
        WeightChange(
            path,
            "weight",
            LOW_RANK,
            tuple(layer.weight.shape),
            _halves(layer.weight, style.rank),
            scale=style.alpha / style.rank,
            factor=1.0,
        )
        for path, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
        if path.startswith(style.layers) and "time_emb" not in path and getattr(layer, "groups", 1) == 1
    ]


def _halves(weight: Tensor, rank: int) -> dict[Part, Tensor]:
    down = torch.randn(rank, *weight.shape[1:]) / math.sqrt(weight[0].numel())
    up = torch.zeros(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    return {"down": nn.Parameter(down), "up": nn.Parameter(up)}


def train(
    model: Nano, decoder: VAEDecoder, changes: list[WeightChange], draw_styled: Draw, arguments: argparse.Namespace
) -> None:
    """Leave the averages of :func:`training.fitting.fit` in the changes."""
    data, encoder = Batches(draw_styled, arguments.seed), stored_encoder()

    def loss_of(step: int, part: float) -> Tensor:
        ids, pictures = data.draw(arguments.batch, FULL if part > FULL_FROM or step % FULL_EVERY == 0 else SHORT)
        x0 = _x0(model, changes, ids)
        if part < LATENTS_UNTIL:
            return denoising_loss(x0, encoder(pictures))
        return denoising_loss(decoder(x0 / SCALING_FACTOR), pictures)

    fit([half for change in changes for half in change.parts.values()], loss_of, arguments)


def _x0(model: Nano, changes: list[WeightChange], ids: Tensor) -> Tensor:
    with torch.no_grad():
        text = model.text_encoder(ids).last_hidden_state
    noise = torch.randn(len(ids), 8, 8, 8)
    with beside(model.unet, changes):
        v = model.unet(noise, torch.full((1,), float(LAST_STEP)), text)
    x0: Tensor = model.noise_share * noise - model.v_share * v
    return x0


def tensors_of(change: WeightChange, style: Style) -> dict[str, Tensor]:
    """The tensors of a change in a file, float16, under the names that the style's tool gives them."""
    down, up = (change.parts[part].detach().half().contiguous() for part in ("down", "up"))
    if style.names == "peft":
        return {f"unet.{change.module}.lora_A.weight": down, f"unet.{change.module}.lora_B.weight": up}
    name = "lora_unet_" + change.module.replace(".", "_")
    alpha = torch.tensor(style.alpha).half()
    return {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}


def save(changes: list[WeightChange], style: Style, path: Path) -> None:
    """Write the file of a LoRA."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for change in changes for name, value in tensors_of(change, style).items()}
    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)


def scores(model: Nano, decoder: VAEDecoder, style: Style, path: Path) -> dict[str, dict[str, float]]:
    """The shares of the style in what held-out captions look like with a stored LoRA and without."""
    scenes = [scene for part in held_out_scenes(120) for scene in part]
    plain = make(model, decoder, scenes).pictures
    with beside(model.unet, changes_of(open_lora(parse_lora(str(path))), "unet", model.unet)):
        styled = make(model, decoder, scenes).pictures
    return {"with": style.shares(styled, scenes), "without": style.shares(plain, scenes)}


def main() -> None:
    """Trains, writes the file, and prints its scores."""
    parser = flags(__doc__, NANO / "loras", minutes=4.5, batch=32, rate=4e-3)
    parser.add_argument("style", choices=STYLES)
    arguments = started(parser)
    style, path = STYLES[arguments.style], arguments.out / f"{arguments.style}.safetensors"
    model, decoder = load_nano(NANO).requires_grad_(False), load_stored_decoder(NANO).requires_grad_(False)
    changes = no_changes(model.unet, style)
    train(model, decoder, changes, style.draw, arguments)
    save(changes, style, path)
    print(json.dumps(scores(model, decoder, style, path), indent=1))


if __name__ == "__main__":
    main()
