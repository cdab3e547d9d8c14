"""Padding of convolution and pooling windows."""

from __future__ import annotations

from collections.abc import Sequence


def window_pads(
    pad_type: str,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pad: Sequence[int] | None,
) -> list[tuple[int, int]]:
    """Elements to add before and after every spatial axis.

    ``same`` pads so that the output has ⌈size / stride⌉ elements, the odd one at the end; ``same_lower`` puts the odd
    one at the beginning.

    Raises:
        ValueError: an unknown ``pad_type``, or ``custom`` without pads.
    """
    kind = pad_type.lower()
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        if pad is None or len(pad) != 2 * len(sizes):
            raise ValueError("pad_type custom needs two pads per spatial axis")
        return [(pad[2 * i], pad[2 * i + 1]) for i in range(len(sizes))]
    if kind not in ("same", "same_lower"):
        raise ValueError(f"pad_type {pad_type!r}")
    pads = []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, s * -(-size // s) - size + (k - 1) * d + 1 - s)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if kind == "same" else (large, small))
    return pads
