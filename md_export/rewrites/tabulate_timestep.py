"""The sine and cosine of the timestep → a look-up in a table that was computed in float32.

    cat(cos(t·f), sin(t·f))  →  relu(1 - |t - [0, 1, …, T]|) @ table

For whole timesteps up to the schedule's last, which are all that samplers take.
"""

# Principle: half precision holds every whole number up to 2048, but 999 radians only to 0.25. The first factor is 1 at
# the timestep's place and 0 elsewhere, exactly; the table is rounded once. Only plain arithmetic: float32 ops leave the
# Neural Engine, and GPU engines take no look-up by a computed index.

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.models.layers import TimestepEmbedding
from md_export.rewrites.adopt import TIMESTEPS, type_name
from md_export.rewrites.fold_timestep import count_one_step
from md_export.spec.sampler import OneStep

# Side of a picture in pixels, the largest whole number up to which half precision holds all.
_LARGEST_SIDE: Final = 2048


class Tabled(nn.Module):
    """A layer that looks up what it would compute of angles."""

    places: Tensor
    table: Tensor

    def row(self, timestep: Tensor) -> Tensor:
        """``[B]`` → ``[B, channels]``, cosine and sine."""
        given, places = timestep.float()[:, None], self.places[None, :]
        # Two differences for one absolute value, which LiteRT's GPU engine is not known to take.
        chosen = F.relu(1.0 - F.relu(given - places) - F.relu(places - given))
        return chosen @ self.table


class TabledTimestepEmbedding(Tabled, TimestepEmbedding):
    """A time embedding that computes no angle."""

    def forward(self, timestep: Tensor) -> Tensor:
        """``[B]`` → ``[B, dim]``."""
        hidden = F.silu(self.linear_1(self.row(timestep).to(self.linear_1.weight.dtype)))
        out: Tensor = self.linear_2(hidden)
        return out


class TabledTimesteps(Tabled):
    """The half of the time embedding that diffusers has in a layer of its own."""

    def forward(self, timesteps: Tensor) -> Tensor:
        """``[B]`` → ``[B, channels]``."""
        return self.row(timesteps)


@torch.no_grad()
def tabulate_timestep(module: nn.Module, one_step: OneStep) -> int:
    """Change in place; returns the number of time embeddings changed. The table ends with ``one_step.timestep``."""
    places = torch.arange(one_step.timestep + 1, dtype=torch.float32)
    ours = [layer for layer in module.modules() if type(layer) is TimestepEmbedding]
    for layer in ours:
        angles = places[:, None] * layer.frequencies.float()[None, :]
        _tabulate(layer, places, torch.cat([angles.cos(), angles.sin()], dim=-1), TabledTimestepEmbedding)
    others = [layer for layer in module.modules() if type_name(layer) == TIMESTEPS]
    for other in others:
        # Stable Diffusion XL embeds sides of pictures, too.
        sides = other is getattr(module, "add_time_proj", None)
        own = torch.arange(_LARGEST_SIDE + 1, dtype=torch.float32) if sides else places
        _tabulate(other, own, other(own), TabledTimesteps)
    return len(ours) + len(others)


def _tabulate(layer: nn.Module, places: Tensor, table: Tensor, become: type[Tabled]) -> None:
    layer.register_buffer("places", places, persistent=False)
    layer.register_buffer("table", table, persistent=False)
    layer.__class__ = become


def count_tabled(module: nn.Module) -> int:
    """Time embeddings that have the form already, or have been folded away with the timestep."""
    return count_one_step(module) + sum(isinstance(layer, Tabled) for layer in module.modules())
