"""The sine and cosine of the timestep → a lookup in a table computed in float32.

    cat(cos(t·f), sin(t·f))  →  relu(1 - |t - [0, 1, …, T]|) @ table

Valid for whole timesteps up to the last one of the schedule.
"""

# Principle: half precision represents every whole number up to 2048, but angles near 999 radians only to 0.25. The
# first factor is exactly 1 at the timestep's index and 0 elsewhere; the table is rounded once. It needs only plain
# arithmetic: float32 ops do not run on the Neural Engine, and GPU engines do not support a lookup by a computed index.

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.models.layers import TimestepEmbedding
from md_export.rewrites.adopt import TIMESTEPS, type_name
from md_export.rewrites.fold_timestep import count_one_step
from md_export.spec.sampler import OneStep

# Largest picture side in the table, in pixels: half precision represents all whole numbers up to this one.
_LARGEST_SIDE: Final = 2048


class Tabled(nn.Module):
    """A layer that looks up sines and cosines in a table."""

    places: Tensor
    table: Tensor

    def row(self, timestep: Tensor) -> Tensor:
        """Return cosines and sines: ``[B]`` → ``[B, channels]``."""
        given, places = timestep.float()[:, None], self.places[None, :]
        # Two relu instead of an absolute value, which LiteRT's GPU engine may not support.
        chosen = F.relu(1.0 - F.relu(given - places) - F.relu(places - given))
        return chosen @ self.table


class TabledTimestepEmbedding(Tabled, TimestepEmbedding):
    """A time embedding with a table instead of sine and cosine."""

    def forward(self, timestep: Tensor) -> Tensor:
        """``[B]`` → ``[B, dim]``."""
        hidden = F.silu(self.linear_1(self.row(timestep).to(self.linear_1.weight.dtype)))
        out: Tensor = self.linear_2(hidden)
        return out


class TabledTimesteps(Tabled):
    """The sinusoidal part of the time embedding, which is a separate layer in diffusers."""

    def forward(self, timesteps: Tensor) -> Tensor:
        """``[B]`` → ``[B, channels]``."""
        return self.row(timesteps)


@torch.no_grad()
def tabulate_timestep(module: nn.Module, one_step: OneStep) -> int:
    """Rewrite in place; return the number of time embeddings changed. The table ends with ``one_step.timestep``."""
    places = torch.arange(one_step.timestep + 1, dtype=torch.float32)
    ours = [layer for layer in module.modules() if type(layer) is TimestepEmbedding]
    for layer in ours:
        angles = places[:, None] * layer.frequencies.float()[None, :]
        _tabulate(layer, places, torch.cat([angles.cos(), angles.sin()], dim=-1), TabledTimestepEmbedding)
    others = [layer for layer in module.modules() if type_name(layer) == TIMESTEPS]
    for other in others:
        # Stable Diffusion XL also embeds the sides of pictures.
        sides = other is getattr(module, "add_time_proj", None)
        own = torch.arange(_LARGEST_SIDE + 1, dtype=torch.float32) if sides else places
        _tabulate(other, own, other(own), TabledTimesteps)
    return len(ours) + len(others)


def _tabulate(layer: nn.Module, places: Tensor, table: Tensor, become: type[Tabled]) -> None:
    layer.register_buffer("places", places, persistent=False)
    layer.register_buffer("table", table, persistent=False)
    layer.__class__ = become


def count_tabled(module: nn.Module) -> int:
    """Count time embeddings that already have the form or were removed by fold_timestep."""
    return count_one_step(module) + sum(isinstance(layer, Tabled) for layer in module.modules())
