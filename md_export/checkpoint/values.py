"""The values of a checkpoint's tensors, as everything here computes with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from md_export.checkpoint.files import capped
from md_export.errors import CheckpointError
from md_export.pages import let_go_of


def as_float32(component: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All in float32 and contiguous; those that are already are not copied, and the pages of others are given back.

    Raises:
        CheckpointError: NaN or Inf among them.
    """
    converted: dict[str, Tensor] = {}
    broken: list[str] = []
    for name, tensor in tensors.items():
        converted[name] = tensor.to(torch.float32).contiguous()
        if not torch.isfinite(converted[name]).all():
            nans = int(converted[name].isnan().sum())
            infinities = int(converted[name].isinf().sum())
            broken.append(f"{name}: {nans} NaN and {infinities} Inf among {tensor.numel()} values")
        let_go_of([tensor])
    if broken:
        raise CheckpointError(
            "\n    ".join(
                [
                    f"{component}: {len(broken)} tensors hold values that are not finite; "
                    "use a checkpoint from before training diverged, or copy it again:",
                    *capped(broken),
                ]
            )
        )
    return converted
