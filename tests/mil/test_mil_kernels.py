"""Kernels against numpy, torch and the examples of the op set's own documentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from md_export.mil.kernels import (
    conv,
    elementwise,
    image,
    image_sampling,
    layers,
    tensor_operation,
    tensor_transformation,
)
from md_export.mil.table import IOS15

torch.manual_seed(0)
IMAGE = torch.randn(2, 6, 9, 7)


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "target", "expected"),
    [
        ("UNALIGN_CORNERS", 5, [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("DEFAULT", 5, [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", 6, [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0]),
        ("DEFAULT", 6, [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("ALIGN_CORNERS", 1, [0.5]),
    ],
)
def test_sampling_grids_are_those_of_the_documentation(mode: str, target: int, expected: list[float]) -> None:
    _close(image.grid(2, target, mode), torch.tensor(expected))


def test_bilinear_resizing_is_torchs() -> None:
    for align, mode in ((True, "STRICT_ALIGN_CORNERS"), (False, "UNALIGN_CORNERS")):
        expected = F.interpolate(IMAGE, (13, 20), mode="bilinear", align_corners=align)
        _close(image.resize_bilinear(IMAGE, 13, 20, mode), expected)
        _close(image.upsample_bilinear(IMAGE, 2, 3, align), F.interpolate(
            IMAGE, (18, 21), mode="bilinear", align_corners=align))  # fmt: skip


def test_nearest_upsampling_is_torchs() -> None:
    _close(image.upsample_nearest_neighbor(IMAGE, 2, 3), F.interpolate(IMAGE, (18, 21), mode="nearest"))
    _close(image.resize_nearest_neighbor(IMAGE, 4, 11), F.interpolate(IMAGE, (4, 11), mode="nearest"))


def test_resize_keeps_the_sizes_that_are_zero() -> None:
    assert image.resize(IMAGE, (1, 0, 10), 2).shape == (2, 6, 9, 10)
    assert image.resize(IMAGE, (5,), 1, "NEAREST_NEIGHBOR").shape == (2, 6, 9, 5)


@pytest.mark.parametrize(
    ("padding", "torchs"), [("constant", "zeros"), ("border", "border"), ("reflection", "reflection")]
)
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_resampling_is_torchs_grid_sample(padding: str, torchs: str, sampling: str) -> None:
    grid = torch.rand(2, 5, 4, 2) * 3 - 1.5
    expected = F.grid_sample(IMAGE, grid, mode=sampling, padding_mode=torchs, align_corners=True)
    found = image_sampling.resample(IMAGE, grid, sampling, padding, 0.0, "normalized_minus_one_to_one", True)
    _close(found, expected)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pads", [(1, 1, 2, 2), (0, 2, 1, 0)])
def test_conv_pads_before_and_after(groups: int, pads: tuple[int, ...]) -> None:
    weight, bias = torch.randn(6, 6 // groups, 3, 2), torch.randn(6)
    found = conv.conv(IMAGE, weight, bias, (2, 1), "custom", pads, (1, 2), groups)
    padded = F.pad(IMAGE, (pads[2], pads[3], pads[0], pads[1]))
    _close(found, F.conv2d(padded, weight, bias, (2, 1), 0, (1, 2), groups))


@pytest.mark.parametrize(("pad_type", "before", "after"), [("same", 0, 1), ("same_lower", 1, 0)])
def test_the_odd_row_of_same_padding(pad_type: str, before: int, after: int) -> None:
    x, weight = torch.randn(1, 1, 8), torch.randn(1, 1, 2)
    _close(conv.conv(x, weight, pad_type=pad_type), F.conv1d(F.pad(x, (before, after)), weight))


def test_transposed_convolution() -> None:
    weight, bias = torch.randn(6, 4, 3, 3), torch.randn(8)
    options = {"strides": (2, 2), "groups": 2}
    plain = conv.conv_transpose(IMAGE, weight, bias, **options)  # type: ignore[arg-type]
    _close(plain, F.conv_transpose2d(IMAGE, weight, bias, 2, groups=2))
    custom = conv.conv_transpose(
        IMAGE, weight, bias, pad=(1, 1, 1, 1), pad_type="custom", output_shape=(2, 8, 18, 14), strides=(2, 2), groups=2
    )
    _close(custom, F.conv_transpose2d(IMAGE, weight, bias, 2, 1, 1, 2))
    assert conv.conv_transpose(IMAGE, weight, pad_type="same", strides=(2, 2), groups=2).shape == (2, 8, 18, 14)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("excluded", [False, True])
def test_average_pooling_is_torchs(ceil: bool, excluded: bool) -> None:
    found = conv.avg_pool(IMAGE, (3, 2), (2, 2), "custom", (1, 1, 1, 1), excluded, ceil)
    _close(found, F.avg_pool2d(IMAGE, (3, 2), 2, 1, ceil, not excluded))


@pytest.mark.parametrize("ceil", [False, True])
def test_max_pooling_is_torchs_for_every_rank(ceil: bool) -> None:
    _close(
        conv.max_pool(IMAGE, (3, 3), (2, 2), "custom", (1, 1, 1, 1), ceil), F.max_pool2d(IMAGE, 3, 2, 1, ceil_mode=ceil)
    )
    _close(conv.max_pool(IMAGE[0], (3,), (2,)), F.max_pool1d(IMAGE[0], 3, 2))
    _close(conv.l2_pool(IMAGE[0], (3,), (2,)), F.lp_pool1d(IMAGE[0], 2, 3, 2))
    _close(conv.avg_pool(IMAGE[:, :, None], (1, 3, 3)), F.avg_pool3d(IMAGE[:, :, None], (1, 3, 3), 1))


def test_normalizations_are_torchs() -> None:
    gamma, beta = torch.randn(6), torch.randn(6)
    _close(layers.instance_norm(IMAGE, gamma, beta), F.instance_norm(IMAGE, weight=gamma, bias=beta))
    mean, variance = torch.randn(6), torch.rand(6)
    expected = F.batch_norm(IMAGE, mean, variance, gamma, beta)
    _close(layers.batch_norm(IMAGE, mean, variance, gamma, beta), expected)
    last = torch.randn(7)
    _close(layers.layer_norm(IMAGE, (-1,), last), F.layer_norm(IMAGE, (7,), last))
    expected = F.layer_norm(IMAGE.movedim(1, -1), (6,), gamma, beta).movedim(-1, 1)
    _close(layers.layer_norm(IMAGE, (1,), gamma, beta), expected)
    expected = F.local_response_norm(IMAGE, 4, 0.3, 0.7, 2.0)
    _close(layers.local_response_norm(IMAGE, 4, 0.3, 0.7, 2.0), expected)


def test_activations_are_torchs() -> None:
    _close(layers.gelu(IMAGE), F.gelu(IMAGE))
    _close(layers.gelu(IMAGE, "TANH_APPROXIMATION"), F.gelu(IMAGE, approximate="tanh"))
    _close(layers.softplus(IMAGE * 50), F.softplus(IMAGE * 50))
    _close(layers.prelu(IMAGE, torch.arange(6.0)), F.prelu(IMAGE, torch.arange(6.0)))
    _close(layers.elu(IMAGE, 0.3), F.elu(IMAGE, 0.3))
    with pytest.raises(ValueError, match="gelu mode"):
        layers.gelu(IMAGE, "ROUGHLY")


def test_nan_stays_nan() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    for result in (
        layers.relu(nan),
        layers.thresholded_relu(nan, 0.5),
        layers.clamped_relu(nan, 0.1, 2.0),
        elementwise.clip(nan, -1.0, 1.0),
        elementwise.sign(nan),
        IOS15["maximum"](nan, torch.zeros(2)),
        tensor_operation.reduce_max(nan[None], (1,)),
        layers.softmax(nan),
        conv.max_pool(nan.reshape(1, 1, 2), (2,)),
    ):
        assert torch.isnan(result.reshape(-1)[0])


def test_integers_stay_integers() -> None:
    x, y = torch.tensor([7, -7], dtype=torch.int32), torch.tensor([2, 2], dtype=torch.int32)
    assert IOS15["floor_div"](x, y).tolist() == [3, -4]
    assert IOS15["mod"](x, y).tolist() == [1, 1]
    assert elementwise.real_div(x, y).tolist() == [3, -3]
    assert elementwise.pow_(x, y).tolist() == [49, 49]
    for result in (
        tensor_operation.reduce_mean(x),
        tensor_operation.reduce_l2_norm(x),
        tensor_operation.reduce_sum(x),
        x * y,
    ):
        assert result.dtype == torch.int32


def test_casts() -> None:
    assert elementwise.cast(torch.tensor([1.9, -1.9]), "int32").tolist() == [1, -1]
    assert elementwise.cast(torch.tensor([0.5, 0.0]), "bool").tolist() == [True, False]
    assert elementwise.cast(torch.tensor([-1], dtype=torch.int32), "uint16").tolist() == [65535]


def test_slicing_is_numpys() -> None:
    x = IMAGE.numpy()
    found = tensor_transformation.slice_by_index(
        IMAGE, (0, 5, 1, -2), (2, 0, 9, 7), (1, -2, 3, 1), (False, False, False, False), (False, True, False, False)
    )
    assert np.array_equal(found.numpy(), x[0:2, 5::-2, 1:9:3, -2:7])
    middle, ends = (False, True, True, False), (True, False, False, True)
    found = tensor_transformation.slice_by_index(IMAGE, (1, 0, 0, -1), (0, 0, 0, 0), None, middle, middle, ends)
    assert np.array_equal(found.numpy(), x[1, :, :, -1])
    assert np.array_equal(tensor_transformation.slice_by_size(IMAGE, (0, 1, 2, 3), (1, 2, -1, 4)), x[:1, 1:3, 2:, 3:7])


def test_slice_update_writes_what_slicing_reads() -> None:
    update = torch.full((2, 2, 3, 7), 5.0)
    arguments = ((0, 1, 8, 0), (2, 3, 2, 7), (1, 1, -2, 1))
    changed = tensor_transformation.slice_update(IMAGE, update, *arguments)
    assert torch.equal(tensor_transformation.slice_by_index(changed, *arguments), update)
    assert int((changed != IMAGE).sum()) == update.numel()


@pytest.mark.parametrize(("mode", "numpys"), [("reflect", "reflect"), ("replicate", "edge"), ("constant", "constant")])
def test_padding_is_numpys(mode: str, numpys: str) -> None:
    found = tensor_operation.pad(IMAGE, (2, 3, 1, 4), mode, 0.0)
    widths = ((0, 0), (0, 0), (2, 3), (1, 4))
    assert np.array_equal(found.numpy(), np.pad(IMAGE.numpy(), widths, numpys))  # type: ignore[call-overload]


def test_space_and_depth_undo_each_other() -> None:
    x = torch.randn(4, 8, 6, 4)
    assert torch.equal(tensor_transformation.space_to_depth(tensor_transformation.depth_to_space(x, 2), 2), x)
    spread = tensor_transformation.batch_to_space(x, (2, 2), (0, 0, 0, 0))
    assert torch.equal(tensor_transformation.space_to_batch(spread, (2, 2), (0, 0, 0, 0)), x)
    shuffled = tensor_transformation.pixel_shuffle(x, 2)
    assert not torch.equal(shuffled, tensor_transformation.depth_to_space(x, 2))
    assert torch.equal(tensor_transformation.pixel_unshuffle(shuffled, 2), x)


def test_ordering_and_running_sums() -> None:
    x = torch.tensor([[3.0, 1.0, 2.0]])
    values, order = tensor_operation.topk(x, 2)
    assert (values.tolist(), order.tolist()) == ([[3.0, 2.0]], [[0, 2]])
    assert tensor_operation.argsort(x, ascending=True).tolist() == [[1, 2, 0]]
    assert tensor_operation.cumsum(x, 1, exclusive=True, reverse=True).tolist() == [[3.0, 2.0, 0.0]]
    assert tensor_operation.band_part(torch.ones(3, 3), 0, 1).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert tensor_operation.one_hot(torch.tensor([1]), 3).tolist() == [[0, 1, 0]]
    assert tensor_operation.concat((x, -x), 1, True).tolist() == [[3.0, -3.0, 1.0, -1.0, 2.0, -2.0]]
    start, end, step = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.4)
    _close(tensor_operation.range_1d(start, end, step), torch.tensor([1.0, 1.4, 1.8]))


def test_attention_with_both_kinds_of_mask() -> None:
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    boolean = torch.rand(5, 7) > 0.3
    boolean[:, 0] = True
    added = torch.randn(5, 7)
    for mask in (None, boolean, added):
        expected = F.scaled_dot_product_attention(q, k, v, mask)
        _close(layers.scaled_dot_product_attention(q, k, v, mask), expected)


def test_suppression_drops_what_overlaps() -> None:
    boxes = torch.tensor([[[0.0, 0, 2, 2], [0.1, 0, 2, 2], [9, 9, 2, 2]]])
    scores = torch.tensor([[[0.9], [0.8], [0.7]]])
    kept, _, indices, count = image.non_maximum_suppression(boxes, scores, 0.5, 0.1, 4)
    assert indices.tolist() == [[0, 2, -1, -1]]
    assert count.tolist() == [2]
    assert kept[0, 2:].abs().sum() == 0
