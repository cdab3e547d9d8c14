"""Trains the nano UNet for in-painting: noise, mask and the latents of the picture around it -> x0.

Run from golden/nano, after ``python -m training.encoder``: ``python -m training.inpaint``. It starts from the stored
UNet with nine more input channels of weight 0. What is hidden shall be as the caption says, the rest as the picture
shows it, also where the caption says something else of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.checkpoint import NANO, WEIGHTS, load_nano, unet_json
from training.encoder import FOLDER as ENCODER
from training.encoder import load_stored_encoder, pictures_of
from training.fitting import fit, flags, started
from training.hidden import hiding, touched
from training.latents import CHANNELS, SCALING_FACTOR, Encoder
from training.lora import stored_encoder
from training.model import LAST_STEP, Nano, unet_config
from training.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    Item,
    Scene,
    all_pairs,
    all_singles,
    caption,
    caption_variants,
    is_held_out,
)
from training.text import CaptionEncoder
from training.train import FULL, SHORT, denoising_loss

FOLDER = NANO / "siblings" / "inpaint"
#: Parts of the UNet that stay the parent's, by the beginnings of their names: the innermost maps, and so most weights.
KEPT = ("down_blocks.2.", "up_blocks.0.", "time_embedding.")
#: Two-object scenes to draw, beside all with one object, and the share of the latter in a batch.
PAIRS, SINGLE_SHARE = 6000, 0.3
#: Share of batches' pictures that are hidden as a whole; of those whose caption says something else of what is seen.
ALL_HIDDEN, MISLED = 0.15, 0.5
#: Deviation of the noise on the picture's latents: the encoder is not exact.
LATENT_NOISE = 0.03
FULL_FROM, FULL_EVERY = 0.8, 8


@dataclass(frozen=True)
class Batch:
    """ids [B, L], x0 [B, 8, 8, 8], and beside the noise [B, 9, 8, 8]: the mask, then the latents of what is seen."""

    ids: Tensor
    x0: Tensor
    condition: Tensor


class Hidden:
    """Random training batches; no scene that is drawn or said is held out."""

    def __init__(self, seed: int, pca: Encoder) -> None:
        self.rng, self.pca, self.encode = np.random.default_rng(seed), pca, CaptionEncoder()
        self.alone = [scene for scene in all_singles() if not is_held_out(scene)]
        pairs = [scene for scene in all_pairs() if not is_held_out(scene)]
        self.pairs = [pairs[i] for i in self.rng.choice(len(pairs), PAIRS, replace=False)]
        self.scenes = [*self.alone, *self.pairs]
        self.pictures = (pictures_of(self.scenes) * 127.5 + 127.5).round().to(torch.uint8)

    def draw(self, size: int, length: int) -> Batch:
        """`size` scenes, each with one object hidden; captions of `length` tokens."""
        alone = round(size * SINGLE_SHARE)
        chosen = [*self.rng.integers(len(self.alone), size=alone)]
        chosen += [*self.rng.integers(len(self.alone), len(self.scenes), size=size - alone)]
        made = [self._hide(self.scenes[index]) for index in chosen]
        masks, ids = torch.stack([mask for mask, _ in made]), self.encode([text for _, text in made], length)
        pictures = self.pictures[chosen].float() / 127.5 - 1
        seen = self.pca(pictures * (1 - masks))
        seen = seen + LATENT_NOISE * torch.randn_like(seen)
        return Batch(ids, self.pca(pictures), torch.cat([touched(masks), seen], dim=1))

    def _hide(self, scene: Scene) -> tuple[Tensor, str]:
        """What is hidden of a scene, and what is said."""
        hidden = int(self.rng.integers(len(scene.items)))
        margins = tuple(int(value) for value in self.rng.integers(0, 13, 2))
        if self.rng.random() < ALL_HIDDEN:
            return torch.ones(1, 64, 64), self._said(scene)
        mask = hiding(scene.items[hidden].place, (margins[0], margins[1]))
        if scene.relation and self.rng.random() < MISLED:
            return mask, self._said(misled(scene, hidden, self.rng))
        return mask, self._said(scene)

    def _said(self, scene: Scene) -> str:
        variants = caption_variants(scene)
        return variants[0 if self.rng.random() < 0.5 else self.rng.integers(len(variants))]


def misled(scene: Scene, hidden: int, rng: np.random.Generator, held_out: bool = False) -> Scene:
    """The scene with something else in place of what is not hidden, and maybe on another background."""
    kept = 1 - hidden
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))] if rng.random() < 0.5 else scene.background
    while True:
        item = dataclasses.replace(
            scene.items[kept], shape=SHAPES[rng.integers(len(SHAPES))], colour=COLOURS[rng.integers(len(COLOURS))]
        )
        other = replaced(scene, kept, item, background)
        differs = looks(other, kept) != looks(scene, kept) and looks(other, 0) != looks(other, 1)
        if differs and (held_out or not is_held_out(other)):
            return other


def replaced(scene: Scene, index: int, item: Item, background: str | None = None) -> Scene:
    """The scene with another object at one place."""
    items = tuple(item if i == index else old for i, old in enumerate(scene.items))
    return Scene(items, background or scene.background, scene.relation)


def looks(scene: Scene, index: int) -> tuple[str, str]:
    """Shape and colour of one object."""
    return scene.items[index].shape, scene.items[index].colour


def widened(parent: Nano) -> Nano:
    """The parent with nine more channels into its UNet, which do nothing yet."""
    model = Nano(len(CaptionEncoder()), dataclasses.replace(unet_config(), in_channels=2 * CHANNELS + 1))
    weights = parent.state_dict()
    first = weights["unet.conv_in.weight"]
    weights["unet.conv_in.weight"] = torch.cat([first, torch.zeros(len(first), CHANNELS + 1, *first.shape[2:])], dim=1)
    model.load_state_dict(weights)
    for name, value in model.named_parameters():
        value.requires_grad_(name.startswith("unet.") and not name.removeprefix("unet.").startswith(KEPT))
    return model


def x0_of(model: Nano, ids: Tensor, noise: Tensor, condition: Tensor) -> Tensor:
    """Token ids [B, L], noise [B, 8, 8, 8] and the condition [B, 9, 8, 8] -> x0 [B, 8, 8, 8]."""
    with torch.no_grad():
        text = model.text_encoder(ids).last_hidden_state
    v = model.unet(torch.cat([noise, condition], dim=1), torch.full((1,), float(LAST_STEP)), text)
    x0: Tensor = model.noise_share * noise - model.v_share * v.float()
    return x0


def train(model: Nano, arguments: argparse.Namespace) -> Nano:
    """The same model, its UNet the averages of :func:`training.fitting.fit`."""
    data = Hidden(arguments.seed, stored_encoder())

    def loss_of(step: int, part: float) -> Tensor:
        batch = data.draw(arguments.batch, FULL if part > FULL_FROM or step % FULL_EVERY == 0 else SHORT)
        with torch.autocast("cpu", torch.bfloat16):
            made = x0_of(model, batch.ids, torch.randn_like(batch.x0), batch.condition)
        return denoising_loss(made, batch.x0)

    fit([value for value in model.parameters() if value.requires_grad], loss_of, arguments, weight_decay=0.01)
    return model.eval()


def save(model: Nano, folder: Path) -> None:
    """A sibling of the parent: the UNet's changed tensors in float16, and the encoder."""
    parent = load_file(NANO / "unet" / WEIGHTS)
    changed = {
        name: value.half().contiguous()
        for name, value in model.unet.state_dict().items()
        if value.shape != parent[name].shape or not torch.equal(value.half(), parent[name])
    }
    note = {"parent": "../..", "note": "in-painting: mask and latents of the picture beside the noise; and the encoder"}
    files = {
        "sibling.json": note,
        "unet/config.json": unet_json(dataclasses.replace(unet_config(), in_channels=2 * CHANNELS + 1)),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "vae").mkdir(exist_ok=True)
    (folder / "vae" / WEIGHTS).write_bytes((ENCODER / "vae" / WEIGHTS).read_bytes())
    save_file(changed, folder / "unet" / WEIGHTS, {"format": "pt"})
    (folder / "unet" / WEIGHTS).chmod(0o644)


def load_inpainting(folder: Path = FOLDER) -> Nano:
    """The stored weights in float32."""
    model = widened(load_nano(NANO))
    model.unet.load_state_dict(load_file(NANO / "unet" / WEIGHTS) | load_file(folder / "unet" / WEIGHTS))
    return model.float().eval()


@dataclass(frozen=True)
class Task:
    """One held-out case: the picture that is given, what is hidden of it, what is said, and what must come out."""

    given: Scene
    hidden: int
    said: Scene
    wanted: Scene

    @property
    def mask(self) -> Tensor:
        """1 where it shall be painted: [1, 64, 64]."""
        return hiding(self.wanted.items[self.hidden].place)

    @property
    def prompt(self) -> str:
        """The caption."""
        return caption(self.said)


def held_out_tasks(count: int, misleading: bool, seed: int = 5) -> list[Task]:
    """Something else stands where the hidden object shall come; ``misleading`` captions are wrong about the rest."""
    rng = np.random.default_rng(seed)
    pairs = [scene for scene in all_pairs() if is_held_out(scene)]
    tasks = []
    for index in rng.choice(len(pairs), count, replace=False):
        wanted, hidden = pairs[index], int(rng.integers(2))
        given = misled(wanted, 1 - hidden, rng, held_out=True)
        given = dataclasses.replace(given, background=wanted.background)
        said = misled(wanted, hidden, rng, held_out=True) if misleading else wanted
        tasks.append(Task(given, hidden, said, wanted))
    return tasks


@torch.no_grad()
def scores(model: Nano, count: int = 100) -> dict[str, dict[str, float]]:
    """On held-out tasks: share that the detector finds right, and the PSNR in dB outside of the mask."""
    from training.detector import judge
    from training.evaluate import load_stored_decoder, to_pictures

    encode, encoder, decoder = CaptionEncoder(), load_stored_encoder(), load_stored_decoder(NANO)
    found = {}
    for name, misleading in (("true", False), ("misleading", True)):
        tasks = held_out_tasks(count, misleading)
        masks = torch.stack([task.mask for task in tasks])
        given = pictures_of([task.given for task in tasks])
        seen = encoder(given * (1 - masks)) * SCALING_FACTOR
        noise = torch.randn(count, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(7))
        x0 = x0_of(model, encode([t.prompt for t in tasks], FULL), noise, torch.cat([touched(masks), seen], dim=1))
        made = to_pictures(decoder(x0 / SCALING_FACTOR))
        outside = (1 - masks).permute(0, 2, 3, 1).numpy()
        errors = ((made - (given.permute(0, 2, 3, 1).numpy() / 2 + 0.5)) ** 2 * outside).sum((1, 2, 3))
        errors = errors / (3 * outside.sum((1, 2, 3)))
        right = [judge(picture, task.wanted).right for picture, task in zip(made, tasks, strict=True)]
        found[name] = {"right": float(np.mean(right)), "kept_psnr_db": float(np.mean(-10 * np.log10(errors)))}
    return found


def main() -> None:
    """Trains, stores and scores."""
    arguments = started(flags(__doc__, FOLDER, minutes=12.0, batch=64, rate=1.5e-3))
    save(train(widened(load_nano(NANO)), arguments), arguments.out)
    print(json.dumps(scores(load_inpainting(arguments.out)), indent=1))


if __name__ == "__main__":
    main()
