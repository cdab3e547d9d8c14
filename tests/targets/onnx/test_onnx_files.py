"""Bytes are the same in every process and tell nothing of the machine; damaged files and inputs are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from md_export.errors import ConversionError, RuntimeFault, UsageError
from md_export.spec.recipe import QuantScheme
from md_export.targets import TARGETS
from support import Exported

target = TARGETS["onnx"].open()

EXPORT = """
import sys
import tempfile
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parents[1])]
import conftest
from small_models import NANO

work = Path(sys.argv[2])
decoder = conftest.build_subject("vae_decoder", NANO)
conftest.export(decoder.with_scheme(conftest.SCHEMES["int8"], work), work / "x.onnx")
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    running = []
    for seed in ("1", "2"):
        argv = [sys.executable, "-c", EXPORT, str(Path(__file__).parent), str(tmp_path / seed)]
        env = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "[torch.onnx]" not in out + err
        assert "pre-processing" not in err
    first, second = ((tmp_path / seed / "x.onnx").read_bytes() for seed in ("1", "2"))
    assert first == second


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_a_file_tells_nothing_of_the_machine(scheme: str, artifact: Callable[..., Path]) -> None:
    content = artifact("unet", scheme).read_bytes()
    for word in (b"stack_trace", b"pkg.torch", b".py", str(Path(__file__).parents[3]).encode(), b"site-packages"):
        assert word not in content, word
    model = onnx.load(artifact("unet", scheme))
    assert not model.metadata_props and not any(node.metadata_props or node.doc_string for node in model.graph.node)
    onnx.checker.check_model(model, full_check=True)


def test_nodes_carry_their_module_path(artifact: Callable[..., Path]) -> None:
    names = {node.name: node.op_type for node in onnx.load(artifact("unet", "fp32")).graph.node}
    assert names["up_blocks.0.resnets.1.conv_dw/Conv"] == "Conv"
    assert names["down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_kv/MatMul"] == "MatMul"


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_damaged_file_is_refused(content: bytes | None, artifact: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    whole = artifact("vae_decoder", "fp32").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(RuntimeFault, match=r"x\.onnx"):
        target.load(path)
    with pytest.raises(RuntimeFault, match=r"x\.onnx"):
        target.describe(path)


def test_a_missing_file_and_another_runtime_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match="export it again"):
        target.load(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="onnxruntime only"):
        target.load(tmp_path / "none.onnx", runtime="coreml")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "has the inputs latent"),
        ({"sample": np.zeros((1, 8, 8, 8), np.float32)}, "has the inputs latent; it was given sample"),
        ({"latent": np.zeros((1, 8, 8, 4), np.float32)}, r"must be float32\[1, 8, 8, 8\], not float32\[1, 8, 8, 4\]"),
        ({"latent": np.zeros((1, 8, 8, 8), np.float64)}, "not float64"),
    ],
)
def test_wrong_inputs_are_refused(inputs: dict[str, Any], message: str, artifact: Callable[..., Path]) -> None:
    with pytest.raises(RuntimeFault, match=message):
        target.load(artifact("vae_decoder", "fp32")).run(inputs)


class _Sorted(nn.Module):
    """Control flow that depends on a value: the exporter cannot trace it."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * 2 if latent.sum().item() > 0 else latent


def test_a_module_that_cannot_be_traced_is_an_error_of_ours(subject: Callable[..., Any], tmp_path: Path) -> None:
    job = subject("vae_decoder").with_scheme(QuantScheme("float32", "float32"), tmp_path)
    with pytest.raises(ConversionError, match=r"vae_decoder: torch\.onnx could not export it") as caught:
        target.lower(replace(job, module=_Sorted()))
    assert "\n" not in str(caught.value)


def test_a_module_of_another_shape_is_refused(subject: Callable[..., Any], tmp_path: Path) -> None:
    job = subject("vae_decoder").with_scheme(QuantScheme("float32", "float32"), tmp_path)
    with pytest.raises(ConversionError, match="inputs and outputs"):
        target.lower(replace(job, module=nn.Conv2d(8, 3, 1)))


def test_an_export_tells_nothing_of_the_machine(exported: Exported, nano: Path) -> None:
    """With what an app must know inside."""
    out = exported("onnx", "int8")
    folders = [str(item).encode() for item in (nano, nano.resolve().parent, out, Path.home(), tempfile.gettempdir())]
    for path in sorted(out.glob("*.onnx")):
        content = path.read_bytes()
        assert b"md_export.source_sha256" in content
        assert not [folder for folder in folders if folder in content]
