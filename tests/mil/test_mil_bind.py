"""Arguments reach kernels in the form their annotations ask for."""

from __future__ import annotations

import pytest
import torch

from md_export.errors import RuntimeFault
from md_export.mil.bind import Ints, Scratch, Stored, Tensor, Tensors, bind
from md_export.mil.dtypes import DTYPES, TensorType
from md_export.mil.graph import Declared, Op, Ref

Y = Declared("y", TensorType(DTYPES["fp16"], (2,)))
HALF = torch.ones(2, dtype=torch.float16)
LARGE = torch.ones(1 << 22, dtype=torch.float16)


def _forms(x: Tensor, s: Stored, many: Tensors, axes: Ints, mode: str, on: bool = False) -> tuple[object, ...]:
    return x.dtype, s.dtype, len(many), axes, mode, on


def _second(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x[0], y[0]])


def _same(x: Tensor) -> Tensor:
    return x


def test_every_form() -> None:
    args: dict[str, tuple[Ref | torch.Tensor | str, ...]] = {
        "x": (Ref("h"),),
        "s": (Ref("h"),),
        "many": (Ref("h"), Ref("h")),
        "axes": (torch.tensor([1, 2], dtype=torch.int32),),
        "mode": ("EXACT",),
    }
    call = bind(Op("op", args, (Y,)), _forms)
    assert call(lambda _: HALF, Scratch()) == (torch.float32, torch.float16, 2, (1, 2), "EXACT", False)


def test_a_string_where_a_tensor_belongs() -> None:
    call = bind(Op("op", {"x": ("text",)}, (Y,)), _same)
    with pytest.raises(TypeError, match="a string"):
        call(lambda _: HALF, Scratch())


def test_missing_and_unknown_arguments_name_the_op() -> None:
    with pytest.raises(RuntimeFault, match="op → y: the program gives no x"):
        bind(Op("op", {}, (Y,)), _same)
    with pytest.raises(RuntimeFault, match="op → y: this runtime does not read the argument z"):
        bind(Op("op", {"x": (HALF,), "z": (HALF,)}, (Y,)), _same)


def test_large_operands_do_not_share_the_scratch_memory() -> None:
    scratch = Scratch()
    call = bind(Op("op", {"x": (LARGE,), "y": (LARGE * 2,)}, (Y,)), _second)
    for _ in range(2):
        assert call(lambda _: HALF, scratch)[0].tolist() == [1.0, 2.0]


def test_a_result_outlives_the_scratch_memory_it_was_computed_in() -> None:
    scratch = Scratch()
    first = bind(Op("op", {"x": (LARGE,)}, (Y,)), _same)(lambda _: HALF, scratch)[0]
    bind(Op("op", {"x": (LARGE * 2,)}, (Y,)), _same)(lambda _: HALF, scratch)
    assert first[0].item() == 1.0
