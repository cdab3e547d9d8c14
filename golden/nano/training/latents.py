"""Pictures to latents: a fixed PCA of 8x8 patches, that is one 8x8 stride-8 convolution."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.drawing import draw
from training.scenes import Scene, all_pairs, all_singles

#: Where data and checkpoints of a training are kept unless --work says otherwise.
WORK = Path(tempfile.gettempdir()) / "nano_work"
#: Pixels per latent pixel, and latent channels.
PATCH, CHANNELS = 8, 8
#: x0 (unit deviation) = SCALING_FACTOR * the decoder's input.
SCALING_FACTOR = 0.5


@dataclass(frozen=True)
class Encoder:
    """x0 = conv(picture, weight, bias): weight [8, 3, 8, 8], bias [8]; each channel of x0 has deviation 1."""

    weight: Tensor
    bias: Tensor

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, 64, 64] in [-1, 1] -> x0 [N, 8, 8, 8]."""
        return F.conv2d(pictures, self.weight, self.bias, stride=PATCH)


def fit_encoder(pictures: Tensor) -> Encoder:
    """The PCA of the patches of pictures [N, 3, 64, 64] in [-1, 1]; signs are made deterministic."""
    patches = F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH**2)
    patches = patches.double()
    mean = patches.mean(0)
    variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    axes = directions[:, -CHANNELS:].flip(1).T
    largest = axes.abs().argmax(1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    axes = axes / variances[-CHANNELS:].flip(0).sqrt()[:, None]
    weight = axes.reshape(CHANNELS, 3, PATCH, PATCH)
    return Encoder(weight.float(), -(axes @ mean).float())


@dataclass(frozen=True)
class Dataset:
    """Every scene of the grammar with its picture (uint8 [N, 64, 64, 3]) and x0 [N, 8, 8, 8]."""

    scenes: tuple[Scene, ...]
    pictures: np.ndarray
    x0: Tensor
    encoder: Encoder


def load_dataset(work: Path) -> Dataset:
    """Draws and encodes all scenes once; pictures are kept under `work` for the next call."""
    scenes = (*all_singles(), *all_pairs())
    pictures = _drawn(scenes, work / "pictures.npy")
    sample = np.random.default_rng(0).choice(len(scenes), 3000, replace=False)
    encoder = fit_encoder(to_signed(pictures[np.sort(sample)]))
    parts = [encoder(to_signed(pictures[i : i + 512])) for i in range(0, len(scenes), 512)]
    return Dataset(scenes, pictures, torch.cat(parts), encoder)


def to_signed(pictures: np.ndarray) -> Tensor:
    """uint8 pictures [N, H, W, 3] -> float [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _drawn(scenes: Sequence[Scene], path: Path) -> np.ndarray:
    if not path.exists():
        parts = [_as_bytes(draw(scenes[i : i + 256])) for i in range(0, len(scenes), 256)]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate(parts))
    pictures: np.ndarray = np.load(path)
    return pictures


def _as_bytes(pictures: np.ndarray) -> np.ndarray:
    return (pictures * 255 + 0.5).astype(np.uint8)
