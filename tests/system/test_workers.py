"""A converter or runtime that dies is an error message, not the end of the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from md_export.errors import ConversionError, RuntimeFault
from md_export.targets.execution import execute, load_batches, save_batches
from md_export.worker.calling import call_worker

pytestmark = pytest.mark.usefixtures("spawned")


@pytest.mark.parametrize(
    ("number", "message"),
    [(9, "most likely for lack of memory"), (11, r"crashed \(SIGSEGV\)"), (6, r"crashed \(SIGABRT\)")],
)
def test_a_dying_process_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import os\nos.kill(os.getpid(), {number})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConversionError, match=rf"coreml unet: the process .*{message}"):
        call_worker("build", {}, ConversionError, "coreml unet")


def test_an_unforeseen_error_shows_its_last_lines() -> None:
    with pytest.raises(ConversionError, match=r"(?s)coreml unet: .*its last lines:.*KeyError"):
        call_worker("no such task", {}, ConversionError, "coreml unet")


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
