"""A few numbers during training: x0 error on held-out captions, and once a decoder exists the detector's verdict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training.detector import judge
from training.latents import SCALING_FACTOR, Dataset
from training.model import Nano, load_decoder
from training.scenes import caption, is_held_out
from training.text import CaptionEncoder
from training.tokenizer import MAX_LENGTH

#: Held-out captions of each kind that a quick score looks at, at 77 tokens.
COUNT = 48


class QuickScore:
    """Scores an averaged model on fixed held-out captions and fixed noise."""

    def __init__(self, data: Dataset, encode: CaptionEncoder, work: Path) -> None:
        held = [i for i, scene in enumerate(data.scenes) if is_held_out(scene)]
        singles = [i for i in held if not data.scenes[i].relation]
        pairs = [i for i in held if data.scenes[i].relation]
        rng = np.random.default_rng(5)
        chosen = [*rng.choice(singles, COUNT, replace=False), *rng.choice(pairs, COUNT, replace=False)]
        self.scenes = [data.scenes[i] for i in chosen]
        self.x0 = data.x0[chosen]
        self.ids = encode([caption(scene) for scene in self.scenes], MAX_LENGTH)
        self.noise = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(5))
        self.decoder_path = work / "decoder.pt"

    @torch.no_grad()
    def __call__(self, model: Nano) -> dict[str, float]:
        """x0 MSE of one- and two-object captions, and the share the detector finds right."""
        made = model(self.ids, self.noise)
        error = (made - self.x0).square().mean((1, 2, 3))
        scores = {"mse_single": float(error[:COUNT].mean()), "mse_pair": float(error[COUNT:].mean())}
        if self.decoder_path.exists():
            decoded = load_decoder(self.decoder_path)(made / SCALING_FACTOR)
            pictures = (decoded.permute(0, 2, 3, 1).numpy() / 2 + 0.5).clip(0, 1)
            right = [judge(picture, scene).right for picture, scene in zip(pictures, self.scenes, strict=True)]
            scores |= {"right_single": float(np.mean(right[:COUNT])), "right_pair": float(np.mean(right[COUNT:]))}
        return scores
