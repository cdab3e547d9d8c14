"""What the short trainings share, of everything beside the nano's own UNet and decoder: flags, loop, moving average."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.schedule import cosine

_REPORT_EVERY = 50


def flags(description: str | None, out: Path, minutes: float, batch: int, rate: float) -> argparse.ArgumentParser:
    """The flags of every training, with what they are where nobody says otherwise."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    parser.add_argument("--keep", type=float, default=0.99, help="weight of the past in the moving average")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def started(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags as given, with torch set up for them."""
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    torch.set_flush_denormal(True)
    return arguments


def fit(
    trained: Sequence[Tensor],
    loss_of: Callable[[int, float], Tensor],
    arguments: argparse.Namespace,
    warm_up: float = 0.02,
    weight_decay: float = 0.0,
) -> None:
    """Train for --minutes of this process' time, and leave the moving averages in the tensors.

    Args:
        trained: leaves that take gradients.
        loss_of: the loss of a step, of its number and the part of the training that is over.
        arguments: of :func:`started`.
        warm_up: part of the training over which the learning rate rises.
        weight_decay: AdamW's.
    """
    average = [value.detach().clone() for value in trained]
    optimizer = torch.optim.AdamW(trained, lr=arguments.rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    losses: list[float] = []
    for step, part in enumerate(_parts(arguments.minutes)):
        optimizer.param_groups[0]["lr"] = arguments.rate * cosine(part, warm_up)
        loss = loss_of(step, part)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(loss.item())
        for mean, value in zip(average, trained, strict=True):
            mean.lerp_(value.detach(), max(1 - arguments.keep, 10 / (step + 11)))
        if (step + 1) % _REPORT_EVERY == 0:
            recent = float(np.mean(losses[-_REPORT_EVERY:]))
            print(json.dumps({"step": step + 1, "part": round(part, 3), "loss": recent}), flush=True)
    with torch.no_grad():
        for mean, value in zip(average, trained, strict=True):
            value.copy_(mean)


def _parts(minutes: float) -> Iterator[float]:
    start = time.process_time()
    while (part := (time.process_time() - start) / (60 * minutes)) < 1:
        yield part
