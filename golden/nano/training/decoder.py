"""Trains the lite decoder: x0 with a little noise -> picture.

Run from golden/nano: ``python -m training.decoder --minutes 14``. Resumes from --work.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.models.vae import VAEDecoder
from training.latents import SCALING_FACTOR, WORK, Dataset, load_dataset, to_signed
from training.model import vae_config
from training.scenes import is_held_out
from training.schedule import cosine, update_average

#: Deviation of the noise added to x0 (unit deviation), so that small errors of the UNet do not show.
LATENT_NOISE = 0.03
#: Share of a batch drawn from one-object scenes; they are 1 in 17 of all scenes.
SINGLE_SHARE = 0.5


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 + 2 MSE + 0.25 L1 of the differences between neighbours; pictures [B, 3, H, W] in [-1, 1]."""
    error = made - wanted
    gradient = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.25 * gradient


def psnr(made: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise in dB of pictures in [-1, 1]."""
    return float(-10 * torch.log10(F.mse_loss(made.clamp(-1, 1), wanted) / 4))


def main() -> None:
    """Trains for --minutes on one thread and saves the averaged weights."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = load_dataset(arguments.work)
    decoder = VAEDecoder(vae_config()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(decoder)
    path = arguments.work / "decoder.pt"
    done = _resume(path, decoder, average, arguments.restart)
    _train(decoder, average, data, arguments, done, path)


def _train(
    decoder: VAEDecoder, average: VAEDecoder, data: Dataset, arguments: argparse.Namespace, done: float, path: Path
) -> None:
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=arguments.rate, betas=(0.9, 0.99), weight_decay=0.02)
    held = _chosen(data, held_out=True, two=False)[::3], _chosen(data, held_out=True, two=True)[::90]
    seen = _chosen(data, held_out=False, two=False), _chosen(data, held_out=False, two=True)
    rng = np.random.default_rng(int(done * 1000))
    start, step = time.monotonic(), 0
    while (part := done + (time.monotonic() - start) / (60 * arguments.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * cosine(part, warm_up=0.02)
        loss = _step(decoder, optimizer, data, _batch(rng, *seen, arguments.batch))
        update_average(average, decoder, min(0.997, step / (step + 10)))
        step += 1
        if step % 200 == 0:
            one, two = (psnr(_decode(average, data.x0[kind]), to_signed(data.pictures[kind])) for kind in held)
            print(
                f"decoder part {part:.3f} step {step} loss {loss:.4f} held-out PSNR {one:.2f} {two:.2f} dB", flush=True
            )
            torch.save({"weights": average.state_dict(), "raw": decoder.state_dict(), "part": part}, path)
    torch.save({"weights": average.state_dict(), "raw": decoder.state_dict(), "part": 1.0}, path)


def _chosen(data: Dataset, held_out: bool, two: bool) -> np.ndarray:
    """Indices of the scenes of one kind."""
    kinds = ((is_held_out(scene), bool(scene.relation)) for scene in data.scenes)
    return np.array([index for index, kind in enumerate(kinds) if kind == (held_out, two)])


def _batch(rng: np.random.Generator, singles: np.ndarray, pairs: np.ndarray, size: int) -> np.ndarray:
    count = round(size * SINGLE_SHARE)
    return np.concatenate([rng.choice(singles, count), rng.choice(pairs, size - count)])


def _step(decoder: VAEDecoder, optimizer: torch.optim.Optimizer, data: Dataset, chosen: np.ndarray) -> float:
    x0 = data.x0[chosen]
    noisy = (x0 + LATENT_NOISE * torch.randn_like(x0)) / SCALING_FACTOR
    wanted = to_signed(data.pictures[chosen]).contiguous(memory_format=torch.channels_last)
    loss = picture_loss(decoder(noisy.contiguous(memory_format=torch.channels_last)), wanted)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    optimizer.step()
    return float(loss)


@torch.no_grad()
def _decode(decoder: VAEDecoder, x0: Tensor) -> Tensor:
    made: Tensor = decoder(x0 / SCALING_FACTOR)
    return made


def _resume(path: Path, decoder: VAEDecoder, average: VAEDecoder, restart: bool) -> float:
    if not path.exists():
        return 0.0
    saved = torch.load(path, weights_only=True)
    decoder.load_state_dict(saved["weights" if restart else "raw"])
    average.load_state_dict(saved["weights"])
    return 0.0 if restart else float(saved["part"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK, help="data and checkpoints")
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--restart", action="store_true", help="keep the weights, begin the rate's course again")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
