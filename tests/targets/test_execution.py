"""Artifacts executed in processes of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from md_export.errors import RuntimeFault
from md_export.spec.tensors import load_batches, save_batches
from md_export.targets.execution import execute


def test_our_own_errors_travel_with_their_class(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(RuntimeFault, match=r"x\.onnx"):
        execute("onnx", tmp_path / "x.onnx", [{"a": np.zeros(1, np.float32)}])


def test_batches_keep_their_order(tmp_path: Path) -> None:
    batches = [{"a": np.full((2, 1), i, np.float32), "b/c": np.asarray(i)} for i in range(12)]
    save_batches(batches, tmp_path / "x.safetensors")
    for got, want in zip(load_batches(tmp_path / "x.safetensors"), batches, strict=True):
        assert sorted(got) == sorted(want)
        assert all(np.array_equal(got[name], want[name]) for name in want)
