"""Small random DiT, PixArt and T5 by diffusers and transformers, with the same weights in our modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from md_export.models.dit import DiT, DiTConfig
from md_export.models.pixart import PixArt, PixArtConfig
from md_export.models.t5_encoder import T5Config, T5Encoder
from md_export.parity.metrics import compare

DIT = DiTConfig(sample_size=8, out_channels=8, num_layers=2, num_attention_heads=2, attention_head_dim=16)
PIXART = PixArtConfig(
    sample_size=8,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=12,
    cross_attention_dim=24,
    caption_channels=20,
    interpolation_scale=2,
)
SIZED = dataclasses.replace(PIXART, use_additional_conditions=True)
SQUARE, CELLS = (8, 8), (8, 12)
DOWNSCALE = 4
TEXT = T5Config(
    vocab_size=100,
    d_model=20,
    d_kv=8,
    d_ff=40,
    num_layers=3,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=12,
    feed_forward_proj="gated-gelu",
    length=24,
)
FIRST = dataclasses.replace(TEXT, feed_forward_proj="relu", relative_attention_num_buckets=32)


@dataclass(frozen=True)
class Case:
    """A module of ours, the library's, inputs, and what the library's gives for them."""

    build: Callable[[], nn.Module]
    theirs: Any
    given: tuple[Tensor, ...]
    wanted: Tensor

    def ours(self) -> Any:
        """With the library's weights."""
        made = self.build()
        weights = {name: value for name, value in self.theirs.state_dict().items() if "embed_tokens" not in name}
        made.load_state_dict(weights, strict=True, assign=True)
        return made.eval().requires_grad_(False)


def random(module: nn.Module) -> Any:
    """Every parameter at the size of a linear's, biases too."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return module.eval().requires_grad_(False)


def dit() -> Case:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    theirs = random(diffusers.DiTTransformer2DModel(**dataclasses.asdict(DIT)))
    given = torch.randn(2, 4, 8, 8), torch.tensor([703.0]), torch.tensor([7, 1000], dtype=torch.int32)
    wanted = theirs(given[0], timestep=given[1].expand(2), class_labels=given[2]).sample
    return Case(lambda: DiT(DIT, SQUARE), theirs, given, wanted)


def pixart(config: PixArtConfig = PIXART, cells: tuple[int, int] = SQUARE) -> Case:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    theirs = random(diffusers.PixArtTransformer2DModel(**dataclasses.asdict(config)))
    mask = torch.ones(2, 10)
    mask[0, 4:], mask[1, 7:] = 0, 0
    given = torch.randn(2, 4, *cells), torch.tensor([703.0]), torch.randn(2, 10, 20), mask
    sides = torch.tensor([cells] * 2) * float(DOWNSCALE)
    size = {"resolution": sides, "aspect_ratio": sides[:, :1] / sides[:, 1:]}
    wanted = theirs(
        given[0],
        timestep=given[1].expand(2),
        encoder_hidden_states=given[2],
        encoder_attention_mask=mask,
        added_cond_kwargs=size if config.embeds_size else None,
    ).sample
    return Case(lambda: PixArt(config, cells, DOWNSCALE), theirs, given, wanted)


def t5(config: T5Config = TEXT) -> Case:
    from transformers import T5Config as Theirs
    from transformers import T5EncoderModel

    fields = {name: value for name, value in dataclasses.asdict(config).items() if name != "length"}
    theirs = random(T5EncoderModel(Theirs(**fields)))
    mask = torch.ones(2, config.length)
    mask[0, 9:] = 0
    ids = torch.randint(3, 100, mask.shape, dtype=torch.int32)
    return Case(lambda: T5Encoder(config), theirs, (ids, mask), theirs(ids, attention_mask=mask).last_hidden_state)


CASES: dict[str, Callable[[], Case]] = {
    "dit": dit,
    "pixart": pixart,
    "pixart-sized": lambda: pixart(SIZED, CELLS),
    "t5": t5,
    "t5-relu": lambda: t5(FIRST),
}


def db(found: Tensor, wanted: Tensor) -> float:
    """SNR of ours; the channels after the noise, which are the library's alone, are the variance."""
    return compare(found.numpy(), wanted[:, : found.shape[1]].numpy()).snr_db
