"""A value for both halves of a guided batch as one CONCATENATION, in litert_torch's conversion.

diffusers expands the timestep to the batch, ``timesteps.expand(2)``, which the converter makes a BROADCAST_TO.
GPU delegates refuse that operation (google-ai-edge/LiteRT#9191).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from md_export.system.vendors import replaced

_EXPAND: Final = torch.ops.aten.expand.default
# Guidance computes the empty prompt and the prompt. Larger factors, as of masks, would make long CONCATENATIONs.
_MOST_COPIES: Final = 2


@contextmanager
def doubled_by_joining() -> Iterator[None]:
    """Convert each expansion of one row to two as a CONCATENATION; other expansions stay unchanged."""
    from litert_torch.fx_infra import decomp

    with ExitStack() as stack:
        for name in ("_pre_convert_decomp", "_pre_lower_decomp"):
            stack.enter_context(replaced(decomp, name, {**getattr(decomp, name), _EXPAND: _joined}))
        yield


def _joined(x: Tensor, sizes: Sequence[int], *, implicit: bool = False) -> Any:  # noqa: ARG001 (torch's signature)
    """Return the copies of ``x`` side by side; NotImplemented, with which torch expands it, for other expansions."""
    shape = [1] * (len(sizes) - x.ndim) + [*x.shape]
    pairs = zip(shape, sizes, strict=True)
    grown = [axis for axis, (before, after) in enumerate(pairs) if after not in (-1, before)]
    if len(shape) != x.ndim or len(grown) != 1 or sizes[grown[0]] > _MOST_COPIES:
        return NotImplemented
    return torch.cat([x] * sizes[grown[0]], dim=grown[0])
