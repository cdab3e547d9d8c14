"""A value for both halves of a guided batch: no BROADCAST_TO, which GPU delegates refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from md_export.spec.tensors import TensorSpec
from md_export.targets.contract import LoweringJob
from tflite_models import SCHEMES, target


class Expanded(nn.Module):
    """``[1]`` → ``[copies]``, as diffusers makes a timestep for each picture of a batch."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies, self.scale = copies, nn.Parameter(torch.arange(1.0, copies + 1))

    def forward(self, timestep: Tensor) -> Tensor:
        return timestep.expand(self.copies) * self.scale


@pytest.mark.parametrize(("copies", "joined"), [(2, True), (3, False)])
def test_two_copies_are_joined_and_more_are_not(tmp_path: Path, copies: int, joined: bool) -> None:
    inputs, outputs = TensorSpec("timestep", (1,), "float32"), TensorSpec("y", (copies,), "float32")
    example = {"timestep": torch.tensor([7.0]).numpy()}
    job = LoweringJob("unet", Expanded(copies).eval(), (inputs,), (outputs,), example, SCHEMES["fp32"], (), tmp_path)
    path = tmp_path / "x.tflite"
    target.lower(job).quantize(job).save(path)
    kinds = {step.kind for step in target.graph(path).steps}
    assert ("CONCATENATION" in kinds) == joined
    if joined:
        assert "BROADCAST_TO" not in kinds
    (made,) = target.load(path).run(example).values()
    assert made.tolist() == [7.0 * place for place in range(1, copies + 1)]
