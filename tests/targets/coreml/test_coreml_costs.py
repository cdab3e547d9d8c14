"""Multiply-adds and bytes of small programs, against counts made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export.errors import ArtifactError
from md_export.targets.coreml.describe import costs
from md_export.targets.operations import OpCost

Build = Callable[..., Any]
HALF = 2  # bytes of float16


def ones(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 64


def saved(build: Build, shapes: tuple[tuple[int, ...], ...], path: Path) -> Path:
    """``build(mb, *inputs)`` as a float16 program for iOS 18."""
    import coremltools as ct
    from coremltools.converters.mil import Builder

    def of_one(a: Any) -> Any:
        return build(Builder, a)

    def of_two(a: Any, b: Any) -> Any:
        return build(Builder, a, b)

    specs = [Builder.TensorSpec(shape) for shape in shapes]
    program = of_one if len(shapes) == 1 else of_two
    decorated = Builder.program(input_specs=specs, opset_version=ct.target.iOS18)(program)
    ct.convert(decorated, minimum_deployment_target=ct.target.iOS18).save(str(path))
    return path


def the(found: tuple[OpCost, ...], kind: str) -> OpCost:
    (op,) = [op for op in found if op.kind == kind]
    return op


def test_a_convolution(tmp_path: Path) -> None:
    weight = ones(16, 2, 3, 3)
    path = saved(
        lambda mb, a: mb.conv(x=a, weight=weight, groups=2, pad_type="same"), ((1, 4, 8, 6),), tmp_path / "m.mlpackage"
    )
    op = the(costs(path), "conv")
    assert (op.work, op.arithmetic) == ("convolution", "float16")
    assert op.macs == 8 * 6 * 16 * 2 * 9
    # coremltools gives a convolution a bias of zeros.
    assert op.weights - 16 * 2 * 9 in (0, 16)
    assert op.weight_bytes == HALF * op.weights
    assert (op.read_bytes, op.written_bytes) == (HALF * 4 * 8 * 6, HALF * 16 * 8 * 6)


@pytest.mark.parametrize(
    ("build", "shapes", "kind", "macs"),
    [
        (lambda mb, a: mb.conv(x=a, weight=ones(5, 4, 1, 1)), ((1, 4, 8, 6),), "conv", 8 * 6 * 5 * 4),
        (lambda mb, a: mb.linear(x=a, weight=ones(5, 4)), ((3, 7, 4),), "linear", 3 * 7 * 5 * 4),
        (lambda mb, a, b: mb.matmul(x=a, y=b), ((2, 3, 4), (2, 4, 5)), "matmul", 2 * 3 * 4 * 5),
        (
            lambda mb, a, b: mb.matmul(x=a, y=b, transpose_x=True, transpose_y=True),
            ((2, 4, 3), (2, 5, 4)),
            "matmul",
            2 * 3 * 4 * 5,
        ),
        (
            lambda mb, a, b: mb.einsum(values=(a, b), equation="nchw,nwhu->nchu"),
            ((1, 6, 1, 7), (1, 7, 1, 5)),
            "einsum",
            6 * 7 * 5,
        ),
    ],
    ids=["1x1 convolution", "linear", "product", "transposed product", "einsum"],
)
def test_matrix_products(
    build: Build, shapes: tuple[tuple[int, ...], ...], kind: str, macs: int, tmp_path: Path
) -> None:
    op = the(costs(saved(build, shapes, tmp_path / "m.mlpackage")), kind)
    assert (op.work, op.macs) == ("matrix product", macs)


def test_moves_views_and_the_rest(tmp_path: Path) -> None:
    def build(mb: Any, a: Any) -> Any:
        moved = mb.transpose(x=a, perm=(0, 2, 1))
        return mb.relu(x=mb.reshape(x=moved, shape=(1, 4, 6)))

    found = costs(saved(build, ((1, 4, 6),), tmp_path / "m.mlpackage"))
    move = the(found, "transpose")
    assert move.is_layout_move and move.activation_bytes == 2 * HALF * 24 and move.weight_bytes == 0
    assert the(found, "reshape").work == "view"
    assert (the(found, "relu").work, the(found, "relu").macs) == ("other", 0)


@pytest.mark.parametrize(("bits", "packed"), [(8, 8), (4, 4)])
def test_palettes_count_as_they_are_stored(bits: int, packed: int, tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.optimize import coreml as optimize

    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    path = saved(lambda mb, a: mb.linear(x=a, weight=weight), ((1, 64),), tmp_path / "m.mlpackage")
    plain = the(costs(path), "linear")
    config = optimize.OptimizationConfig(optimize.OpPalettizerConfig(nbits=bits, weight_threshold=1))
    smaller = tmp_path / "small.mlpackage"
    model = ct.models.MLModel(str(path), skip_model_load=True)
    optimize.palettize_weights(model, config).save(str(smaller))
    op = the(costs(smaller), "linear")
    assert (op.macs, op.weights, op.arithmetic) == (plain.macs, plain.weights, "float16")
    palette = HALF * 2**bits
    assert 64 * 64 * packed // 8 + palette <= op.weight_bytes <= 64 * 64 * packed // 8 + palette + 256
    assert op.weight_bytes < plain.weight_bytes or bits == 8


def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "m.mlpackage").mkdir()
    with pytest.raises(ArtifactError, match=r"m\.mlpackage"):
        costs(tmp_path / "m.mlpackage")
