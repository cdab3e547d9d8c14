"""The shortcuts in torch's exporter change no byte of a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from onnxscript.rewriter import MatchResult
from torch.onnx._internal.exporter._registration import ONNXRegistry

from md_export.targets.contract import LoweringJob
from md_export.targets.onnx import exporter, lower


def test_the_graph_is_the_same_without_them_and_another_without_the_rules(
    subject: Callable[..., Any],
    make: Callable[[LoweringJob, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = subject("text_encoder").with_scheme(subject("text_encoder").job.scheme, tmp_path)
    quick = make(job, tmp_path / "quick.onnx").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "_match", lambda *_, **__: MatchResult().fail("no rule"))
        assert make(job, tmp_path / "unruled.onnx").read_bytes() != quick
    monkeypatch.setattr(lower, "shortcuts", nullcontext)
    assert make(job, tmp_path / "plain.onnx").read_bytes() == quick


def test_the_table_is_the_one_that_torch_makes() -> None:
    def contents(table: ONNXRegistry) -> dict[str, object]:
        return {str(operator): [vars(one) for one in found] for operator, found in table.functions.items()}

    own, wanted, other = (
        contents(table)
        for table in (exporter._FUNCTIONS, *map(ONNXRegistry.from_torchlib, (exporter.OPSET, exporter.OPSET + 5)))
    )
    # Other libraries may have registered operators since, which no artifact has.
    assert {name.partition("::")[0] for name in wanted.keys() - own.keys()} <= {"quantized_decomposed"}
    assert own == {name: wanted[name] for name in own}
    assert own != {name: other[name] for name in own}
