"""What an op adds up for each of its outputs: how many terms, the sum of their magnitudes, and of their squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from md_export.spec.tensors import Array

# Relative error of one rounding to float16, and error of a number too small for that.
UNIT: Final = 2.0**-11
TINY: Final = 2.0**-25


@dataclass(frozen=True)
class Terms:
    """The sums that an op forms, all shaped like its output; a mean's terms are its inputs over their number.

    Attributes:
        count: terms of one output, those that meet padding included.
        operands: float16 numbers that are multiplied into one term, each rounded once: two of a product.
        sizes: sum of the magnitudes of the terms, float32; no partial sum in any order is larger.
        squares: sum of their squares, float32.
        values: what the op gives, float32.
        scale: largest operand; what the underflow of its partner in a product is multiplied with.
        divided: by so much after the sum is complete: the length of a mean.
        extra: roundings of a term besides those of its product and its additions.
        in_float32: ML Drift adds these up in float32 whatever the precision.
        reads: where rounded operands move the output otherwise than through the terms: the largest error from that,
            and its mean square over u²/3, float64.
    """

    count: int
    operands: int
    sizes: Tensor
    squares: Tensor
    values: Tensor
    scale: float = 1.0
    divided: int = 1
    extra: int = 0
    in_float32: bool = False
    reads: tuple[Tensor, Tensor] | None = None

    @property
    def rounded(self) -> Tensor:
        """Largest error from rounded operands, float64."""
        return self.reads[0] if self.reads else self.sizes.double() * ((1 + UNIT) ** self.operands - 1)

    @property
    def rounded_squares(self) -> Tensor:
        """Its mean square, over u²/3, float64."""
        return self.reads[1] if self.reads else self.operands * self.squares.double()


def tensor(values: Array) -> Tensor:
    """As float32."""
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
