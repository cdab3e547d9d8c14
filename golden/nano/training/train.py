"""Trains text encoder and UNet together for one step from pure noise (v-prediction at t = 999).

Run from golden/nano: ``python -m training.train --minutes 80``. Resumes from --work;
``--activation`` and ``--attention`` with ``--from`` fine-tune a sibling.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.latents import WORK, Dataset, load_dataset
from training.model import Nano, unet_config
from training.quick_score import QuickScore
from training.scenes import caption_variants, is_held_out
from training.schedule import cosine, update_average
from training.text import CaptionEncoder

#: Text lengths in tokens: short while learning (the longest caption has 13), then what ships.
SHORT, FULL = 16, 77
#: Share of a batch drawn from one-object scenes; they are 1 in 17 of all scenes.
SINGLE_SHARE = 0.45


class Batches:
    """Random training batches: ids [B, L] and x0 [B, 8, 8, 8]; nothing held out, nothing unsaid but defaults."""

    def __init__(self, data: Dataset, encode: CaptionEncoder, seed: int) -> None:
        self.x0 = data.x0
        self.rng = np.random.default_rng(seed)
        self.ids = [encode(list(caption_variants(scene)), FULL) for scene in data.scenes]
        seen = [i for i, scene in enumerate(data.scenes) if not is_held_out(scene)]
        self.singles = np.array([i for i in seen if not data.scenes[i].relation])
        self.pairs = np.array([i for i in seen if data.scenes[i].relation])

    def draw(self, size: int, length: int) -> tuple[Tensor, Tensor]:
        """`size` captions of `length` tokens with their x0; the full caption half of the time."""
        singles = round(size * SINGLE_SHARE)
        chosen = [*self.rng.choice(self.singles, singles), *self.rng.choice(self.pairs, size - singles)]
        ids = torch.stack([self._variant(self.ids[i]) for i in chosen])
        return ids[:, :length], self.x0[chosen]

    def _variant(self, ids: Tensor) -> Tensor:
        return ids[0 if self.rng.random() < 0.5 else self.rng.integers(len(ids))]


def denoising_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """MSE + 0.2 L1 of x0."""
    error = made - wanted
    return error.square().mean() + 0.2 * error.abs().mean()


@dataclasses.dataclass
class Run:
    """What is saved and resumed: model, its average, optimizer, and the part done (0..1)."""

    model: Nano
    average: Nano
    optimizer: torch.optim.Optimizer
    part: float = 0.0
    samples: int = 0

    def save(self, path: Path) -> None:
        """Writes everything to `path`, replacing it at once."""
        states = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        torch.save({**states, "part": self.part, "samples": self.samples}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def resume(self, path: Path) -> None:
        """Takes up where `path` was written, if it exists."""
        if not path.exists():
            return
        saved = torch.load(path, weights_only=True)
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.part, self.samples = saved["part"], saved["samples"]


def main() -> None:
    """Trains for --minutes of wall clock and leaves the run in --work."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.set_flush_denormal(True)
    data, encode = load_dataset(arguments.work), CaptionEncoder()
    run = _new_run(arguments, len(encode))
    path = arguments.work / f"{arguments.name}.pt"
    run.resume(path)
    batches = Batches(data, encode, arguments.seed + run.samples)
    _train(run, batches, QuickScore(data, encode, arguments.work), arguments, path)


def _new_run(arguments: argparse.Namespace, vocabulary: int) -> Run:
    model = Nano(vocabulary, unet_config(arguments.activation, arguments.attention))
    if arguments.parent:
        model.load_state_dict(torch.load(arguments.work / f"{arguments.parent}.pt", weights_only=True)["average"])
    for name, value in model.named_parameters():
        value.requires_grad_(not arguments.only or any(part in name for part in arguments.only))
    trained = [value for value in model.parameters() if value.requires_grad]
    matrices = [value for value in trained if value.ndim > 1]
    rest = [value for value in trained if value.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.99), fused=True)
    return Run(model, copy.deepcopy(model), optimizer)


def _train(run: Run, batches: Batches, score: QuickScore, arguments: argparse.Namespace, path: Path) -> None:
    mark, losses = time.monotonic(), []
    next_report = time.monotonic() + 30
    while run.part < 1:
        losses.append(_step(run, batches, arguments, _length(run, arguments)))
        now = time.monotonic()
        run.part, mark = run.part + (now - mark) / (60 * arguments.minutes), now
        if now > next_report or run.part >= 1:
            report = {"run": arguments.name, "part": run.part, "samples": run.samples}
            report |= {"loss": float(np.mean(losses)), **score(run.average)}
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in report.items()}), flush=True)
            run.save(path)
            losses, mark = [], time.monotonic()
            next_report = mark + arguments.report


def _length(run: Run, arguments: argparse.Namespace) -> int:
    """Text length of the next step: mostly short, full now and then and in the last part."""
    step = run.samples // arguments.batch
    return FULL if run.part > arguments.full_from or step % arguments.full_every == 0 else SHORT


def _step(run: Run, batches: Batches, arguments: argparse.Namespace, length: int) -> float:
    for group in run.optimizer.param_groups:
        group["lr"] = arguments.rate * cosine(run.part, warm_up=arguments.warm_up)
    ids, x0 = batches.draw(arguments.batch, length)
    with torch.autocast("cpu", torch.bfloat16):
        made = run.model(ids, torch.randn_like(x0))
    loss = denoising_loss(made, x0)
    run.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    run.samples += arguments.batch
    update_average(run.average, run.model, min(arguments.keep, run.samples / (run.samples + 10 * arguments.batch)))
    return float(loss)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="data and checkpoints")
    parser.add_argument("--name", default="main", help="the run is kept in WORK/NAME.pt")
    parser.add_argument("--parent", help="start from the averaged weights of this run")
    parser.add_argument("--only", nargs="*", default=[], help="train only parameters whose name holds one of these")
    parser.add_argument("--activation", default="swish")
    parser.add_argument("--attention", default="softmax")
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--full-from", type=float, default=0.8, help="part after which the text has 77 tokens")
    parser.add_argument("--full-every", type=int, default=8, help="until then, one step in so many has 77 tokens")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warm-up", type=float, default=0.01)
    parser.add_argument("--keep", type=float, default=0.997, help="weight of the past in the moving average")
    parser.add_argument("--report", type=float, default=60.0, help="seconds between reports")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
