"""What lies around the GPU engine, without it: its log, blame and advice, and graphs cut short."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from md_export.parity.metrics import compare
from md_export.rewrites import REWRITES
from md_export.targets.lint.rules import rules_of
from md_export.targets.operations import Op, Value
from md_export.targets.tflite.describe import graph_ops
from md_export.targets.tflite.gpu.residency import NONE, Refusal, advice_for, read_log, refused_ops
from md_export.targets.tflite.observe import write_prefix
from md_export.targets.tflite.run import load
from planted import COMPONENT, LATENT

ARTIFACT = f"{COMPONENT}.tflite"
INPUTS = {"latent": np.random.default_rng(0).standard_normal(LATENT, dtype=np.float32)}
LOG = """\
I0000 00:00:1795258463.371978    7169 environment.cc:532] Selected adapter: SwiftShader Device (Subzero), arch=x
ERROR: Following operations are not supported by GPU delegate:
RESHAPE: Tensor dimensions must be less than 5. folded;3
TRANSPOSE: Permutation for transpose is invalid.
3 operations will run on the GPU, and the remaining 7 operations will run on the CPU.
ERROR: Following operations are not supported by GPU delegate:
RESHAPE: Tensor dimensions must be less than 5. folded;3
No operations will run on the GPU, and all 10 operations will run on the CPU.
RESHAPE: no refusal any more
E0000 00:00:1795259057.2 10163 delegate_webgpu.cc:478] Failed to create litert::Kernel: INVALID_ARGUMENT: too long
ERROR: Failed to initialize kernel.
ERROR: Restored original execution plan after delegate application failure.
F0000 00:00:1795258672.096584    8625 model.cc:218] Check failed: !IsInput(consumer, value) Node 0 is a consumer
"""


def test_the_engines_log() -> None:
    log = read_log(LOG)
    assert log.adapter == "SwiftShader Device (Subzero)"
    assert log.refusals == (
        Refusal("RESHAPE", "Tensor dimensions must be less than 5. folded;3"),
        Refusal("TRANSPOSE", "Permutation for transpose is invalid."),
    )
    assert log.on_cpu == 10
    assert log.trouble == (
        "INVALID_ARGUMENT: too long",
        "Check failed: !IsInput(consumer, value) Node 0 is a consumer",
    )


def test_what_the_device_refused() -> None:
    first = "E0000 00:00:1 2 environment.cc:105] Validation error: Texture size (width:160, height:8640) is too large"
    then = "E0000 00:00:1 2 environment.cc:105] Validation error: [Invalid Texture] is invalid due to a previous error"
    assert read_log(f"{first}\n{first}\n{then}\n").invalid == ("Texture size (width:160, height:8640) is too large",)
    assert read_log(LOG).invalid == ()


def test_a_log_that_says_nothing() -> None:
    log = read_log("")
    assert (log.adapter, log.refusals, log.on_cpu, log.trouble) == ("no adapter", (), 0, ())


def op(operator: str, output: str, *inputs: str, rank: int = 4) -> Op:
    reads = tuple(Value(name, ()) for name in inputs)
    return Op(operator, output.split(";")[0], reads, (Value(output, (1,) * rank),))


GRAPH = [
    op("TRANSPOSE", "a;1", "x"),
    op("RESHAPE", "b;1", "a;1", rank=5),
    op("TRANSPOSE", "b;2", "b;1", rank=5),
    op("DIV", "c;1", "b;2", "b;2"),
    op("DIV", "d;1", "c;1", "b;2"),
    op("BROADCAST_TO", "e;1", "d;1"),
]


@pytest.mark.parametrize(
    ("operator", "reason", "outputs", "certain"),
    [
        ("RESHAPE", "Tensor dimensions must be less than 5. b;1", ["b;1"], True),
        ("TRANSPOSE", "Permutation for transpose is invalid.", ["b;2"], True),
        ("DIV", "No support of few identical inputs in the same operation.", ["c;1"], True),
        ("BROADCAST_TO", "Operation is not supported.", ["e;1"], True),
        ("DIV", "a reason never seen", ["c;1", "d;1"], False),
        ("CONV_2D", "Operation is not supported.", [], True),
    ],
)
def test_from_a_refusal_to_its_ops(operator: str, reason: str, outputs: list[str], certain: bool) -> None:
    found = refused_ops([Refusal(operator, reason)], GRAPH)
    assert [finding.tensor for finding in found] == outputs
    assert all(finding.certain is certain for finding in found)
    assert all(str(finding).startswith("probably ") is not certain for finding in found)


def test_advice_names_rewrites_that_exist() -> None:
    texts = [remedy.advice for remedy in rules_of("tflite").remedy]
    named = [name for text in texts for name in re.findall(r"rewrite (\w+)", text)]
    assert named
    assert set(named) <= set(REWRITES)
    unknown = op("CUMSUM", "a;1", "x")
    assert advice_for(unknown, "Operation is not supported.") == NONE


def test_the_first_ops_compute_what_they_compute_in_the_whole(planted: Callable[[str], Path], tmp_path: Path) -> None:
    path, inputs = planted("masked") / ARTIFACT, INPUTS
    count = len(graph_ops(path))
    whole, first, rest = (tmp_path / f"{name}.tflite" for name in ("whole", "first", "rest"))
    assert write_prefix(path, count, whole)
    (wanted,) = load(path).run(inputs).values()
    (made,) = load(whole).run(inputs).values()
    assert np.array_equal(made, wanted)
    assert write_prefix(path, count // 2, first)
    assert write_prefix(path, count // 2 + 1, rest)
    before, after = load(first).run(inputs), load(rest).run(inputs)
    shared = set(before) & set(after)
    assert shared
    assert all(compare(after[name], before[name]).snr_db > 120 for name in shared)
    assert first.stat().st_size < path.stat().st_size


def test_no_cut_where_nothing_float_crosses(planted: Callable[[str], Path], tmp_path: Path) -> None:
    assert not write_prefix(planted("masked") / ARTIFACT, 0, tmp_path / "none.tflite")
