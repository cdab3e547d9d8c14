"""Indices: what the op sets say about negative ones, and duplicates."""

from __future__ import annotations

import pytest
import torch

from md_export.mil.graph import Declared, Op
from md_export.mil.kernels import scatter_gather as sg
from md_export.mil.table import kernel_for

X = torch.arange(6.0).reshape(2, 3)
LAST = torch.tensor([-1])


def test_negative_indices_count_from_the_end_until_ios16() -> None:
    gather = Op("gather", {}, (Declared("y", None),))  # type: ignore[arg-type]
    assert kernel_for(gather, 6)(X, LAST, axis=1).tolist() == [[2.0], [5.0]]
    with pytest.raises(IndexError, match="index -1 is negative"):
        kernel_for(gather, 7)(X, LAST, axis=1)


def test_every_op_of_ios17_refuses_negative_indices() -> None:
    rows = torch.tensor([[-1, 0, 0]])
    with pytest.raises(IndexError, match="negative"):
        sg.gather_along_axis_ios17(X, rows)
    with pytest.raises(IndexError, match="negative"):
        sg.gather_nd_ios17(X, LAST[None])
    with pytest.raises(IndexError, match="negative"):
        sg.scatter_ios17(X, LAST, X[:1])
    with pytest.raises(IndexError, match="negative"):
        sg.scatter_along_axis_ios17(X, rows, X[:1])
    with pytest.raises(IndexError, match="negative"):
        sg.scatter_nd_ios17(X, LAST[None], X[:1])


def test_an_index_beyond_the_end_is_refused() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        sg.gather(X, torch.tensor([2]))
    with pytest.raises((IndexError, RuntimeError)):
        sg.scatter(X, torch.tensor([2]), X[:1])


@pytest.mark.parametrize(
    ("mode", "expected"), [("add", 6.0), ("sub", -4.0), ("mul", 6.0), ("div", 1 / 6), ("max", 3.0), ("min", 1.0)]
)
def test_duplicates_are_all_applied(mode: str, expected: float) -> None:
    found = sg.scatter(torch.ones(2), torch.tensor([1, 1]), torch.tensor([2.0, 3.0]), mode=mode)
    assert found.tolist() == pytest.approx([1.0, expected])


def test_the_input_is_not_changed() -> None:
    data = torch.zeros(2)
    sg.scatter(data, torch.tensor([0]), torch.ones(1), mode="update")
    assert data.tolist() == [0.0, 0.0]
