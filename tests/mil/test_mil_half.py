"""Kernels that leave float16 as it is give what float32 arithmetic and one rounding give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from md_export.mil.bind import Native, Scratch, Tensor, bind
from md_export.mil.dtypes import DTYPES, TensorType
from md_export.mil.graph import Declared, Op, Ref
from md_export.mil.kernels import conv, elementwise, image, layers

Y = Declared("y", TensorType(DTYPES["fp16"], (2,)))
HALF = torch.ones(2, dtype=torch.float16)
ULP = 2.0**-10


def _all_finite() -> torch.Tensor:
    """Every finite float16 there is."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    return values[values.isfinite()]


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator) + 1).half()


def _dtypes(x: Native, y: Native, z: Tensor) -> tuple[torch.dtype, ...]:
    return x.dtype, y.dtype, z.dtype


@pytest.mark.parametrize(
    ("given", "keeps_half", "expected"),
    [
        ((HALF, HALF, HALF), True, (torch.float16, torch.float16, torch.float32)),
        ((HALF, HALF.float(), HALF), True, (torch.float32,) * 3),
        ((HALF, HALF, HALF.float()), True, (torch.float32,) * 3),
        ((HALF, HALF, HALF), False, (torch.float32,) * 3),
    ],
)
def test_native_stays_float16_only_among_float16(
    given: tuple[torch.Tensor, ...], keeps_half: bool, expected: tuple[torch.dtype, ...]
) -> None:
    call = bind(Op("op", {name: (Ref(name),) for name in "xyz"}, (Y,)), _dtypes)
    assert call(dict(zip("xyz", given, strict=True)).__getitem__, Scratch(keeps_half)) == expected


@pytest.mark.parametrize("kernel", [layers.relu, layers.sigmoid, layers.silu])
def test_unary_on_every_float16(kernel: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = _all_finite()
    assert torch.equal(kernel(x), kernel(x.float()).half())


def test_two_roundings_would_be_seen() -> None:
    """The comparison above can fail: silu in two float16 steps is another function."""
    x = _all_finite()
    assert not torch.equal(x * torch.sigmoid(x), layers.silu(x.float()).half())


@pytest.mark.parametrize("kernel", [elementwise.add, elementwise.mul, elementwise.sub])
@pytest.mark.parametrize("shape", [(1 << 16,), (1,), ()])
def test_binary(kernel: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> None:
    x = _all_finite()
    y = x[torch.randint(len(x), shape, generator=torch.Generator().manual_seed(1))]
    x = x[torch.randint(len(x), (1 << 16,), generator=torch.Generator().manual_seed(2))]
    assert torch.equal(kernel(x, y), kernel(x.float(), y.float()).half())


@pytest.mark.parametrize("axis", [-1, 1])
def test_softmax(axis: int) -> None:
    x = _drawn(2, 9, 33)
    torch.testing.assert_close(
        layers.softmax(x, axis).float(), layers.softmax(x.float(), axis), rtol=ULP, atol=2.0**-24
    )


@pytest.mark.parametrize("affine", [False, True])
def test_norms(affine: bool) -> None:
    x = _drawn(2, 5, 7, 6)
    gamma, beta, mean, variance = (_drawn(5, seed=seed).float().abs() for seed in range(1, 5))
    affines = {"gamma": gamma, "beta": beta} if affine else {}
    norms: tuple[tuple[Callable[..., torch.Tensor], dict[str, torch.Tensor]], ...] = (
        (layers.instance_norm, {}),
        (layers.batch_norm, {"mean": mean, "variance": variance}),
    )
    for kernel, statistics in norms:
        half, wide = kernel(x, **statistics, **affines), kernel(x.float(), **statistics, **affines)
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), wide, rtol=ULP, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("pad", [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 0, 1)])
@pytest.mark.parametrize("band", [1, 400])
def test_conv_in_bands(
    monkeypatch: pytest.MonkeyPatch, stride: int, dilation: int, pad: tuple[int, ...], band: int
) -> None:
    x, weight, bias = _drawn(2, 4, 11, 8), _drawn(6, 2, 3, 3, seed=1).float(), _drawn(6, seed=2).float()
    options = {"strides": (stride, stride), "dilations": (dilation,) * 2, "pad_type": "custom", "pad": pad, "groups": 2}
    monkeypatch.setattr(conv, "_BAND", band)
    banded = conv.conv(x, weight, bias, **options)  # type: ignore[arg-type]
    assert banded.dtype == torch.float16
    whole = conv.conv(x.float(), weight, bias, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(banded.float(), whole, rtol=ULP, atol=1e-3)


@pytest.mark.parametrize("factors", [(2.0, 3.0), (1.0, 1.0), (1.5, 2.0), (0.5, 1.0)])
def test_nearest_upsampling_takes_the_input_at_the_scaled_position(factors: tuple[float, float]) -> None:
    x = _drawn(2, 3, 4, 6)
    height, width = (int(size * factor) for size, factor in zip((4, 6), factors, strict=True))
    rows, columns = (torch.arange(n) * size // n for n, size in ((height, 4), (width, 6)))
    expected = x[:, :, rows][..., columns]
    assert torch.equal(image.upsample_nearest_neighbor(x, *factors), expected)
