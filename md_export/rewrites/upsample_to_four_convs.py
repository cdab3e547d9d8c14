"""Nearest ×2 and 3×3 convolution → four 2×2 convolutions on the small map, interleaved.

    conv3x3(nearest_x2(x))  →  row 2i+a, column 2j+b of the output = conv2x2_ab(x)[i, j],  a, b ∈ {0, 1}

Taps on the large map that read the same small pixel are added: per axis w0, w1+w2 for an even output position
and w0+w1, w2 for an odd one. Four output values take 16 multiply-adds instead of 36; the stored weights grow
from 9 to 16 per pair of channels.
"""

# Principle: fewer multiply-adds and no intermediate map of four times the size. Channels stay last while the four
# results are interleaved: concatenated along the channels, which a reshape turns into columns, then along the columns,
# which a reshape turns into rows. One 4×4 transposed convolution with stride 2 computes the same in one op, but XNNPACK
# of ai-edge-litert 2.3.0 runs it slower than the original.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.models.layers import Upsample
from md_export.spec.sampler import OneStep


class FourConv2d(nn.Conv2d):
    """The convolution of an Upsample, computed on the small map, with the same ``weight`` and ``bias``.

    ``phases: [4, out, in, 2, 2]`` in the order (row, column) of the output position: 00, 01, 10, 11.
    """

    phases: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, out, 2H, 2W]``."""
        batch, _, height, width = x.shape
        last = x.permute(0, 2, 3, 1)
        parts = [self._phase(last, index) for index in range(4)]
        rows = [torch.cat(pair, dim=3).reshape(batch, height, 2 * width, -1) for pair in (parts[:2], parts[2:])]
        return torch.cat(rows, dim=2).reshape(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)

    def _phase(self, x: Tensor, index: int) -> Tensor:
        """Return one of four output positions: ``[B, H, W, C]`` → ``[B, H, W, out]``."""
        row, column = divmod(index, 2)
        # Pad with channels last: the converter would add transposes around a padding of [B, C, H, W].
        padded = F.pad(x, (0, 0, 1 - column, column, 1 - row, row)).permute(0, 3, 1, 2)
        return F.conv2d(padded, self.phases[index], self.bias).permute(0, 2, 3, 1)


class FourConvUpsample(Upsample):
    """The Upsample without its nearest ×2."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` → ``[B, C, 2H, 2W]``."""
        out: Tensor = self.conv(x)
        return out


@torch.no_grad()
def upsample_to_four_convs(module: nn.Module, one_step: OneStep) -> int:  # noqa: ARG001 (the table's signature)
    """Rewrite in place; return the number of upsamplers changed."""
    found = [layer for layer in module.modules() if type(layer) is Upsample]
    for upsample in found:
        upsample.__class__ = FourConvUpsample
        upsample.conv.__class__ = FourConv2d
        upsample.conv.register_buffer("phases", phases(upsample.conv.weight), persistent=False)
    return len(found)


def phases(weight: Tensor) -> Tensor:
    """Return the four small kernels: ``[out, in, 3, 3]`` → ``[4, out, in, 2, 2]``."""
    rows = _merge_taps(weight.transpose(2, 3))
    return torch.stack([part for row in rows for part in _merge_taps(row.transpose(2, 3))])


def _merge_taps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Merge three taps of the last axis into two for even and two for odd output positions."""
    first, middle, last = weight.unbind(-1)
    return torch.stack([first, middle + last], -1), torch.stack([first + middle, last], -1)
