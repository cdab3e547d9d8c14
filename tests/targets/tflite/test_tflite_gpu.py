"""What does not fit LiteRT's GPU engine, or is wrong on it, is caught there and named with its module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from md_export.errors import RuntimeFault
from md_export.parity.golden.folder import read_golden
from md_export.parity.gpu import GpuDetails, Search, first_bad_op, run_on_gpu, verify_on_gpu
from md_export.parity.metrics import compare
from md_export.parity.verdict import ComponentVerdict
from md_export.spec.artifact import GOLDEN_FOLDER
from planted import COMPONENT
from support import Exported

pytestmark = pytest.mark.usefixtures("gpu_driver")
LIMIT_S = 120.0
Judged = Callable[[str], ComponentVerdict[GpuDetails]]
ARTIFACT = f"{COMPONENT}.tflite"


@pytest.fixture(scope="session")
def verdict(planted: Callable[[str], Path]) -> Judged:
    """``verdict("rank5")`` → what ``verify --gpu`` found, computed once."""
    found: dict[str, ComponentVerdict[GpuDetails]] = {}

    def get(plant: str) -> ComponentVerdict[GpuDetails]:
        if plant not in found:
            (found[plant],) = verify_on_gpu(planted(plant), None, LIMIT_S).components
        return found[plant]

    return get


def test_a_graph_that_fits_passes(verdict: Judged) -> None:
    result = verdict("resident")
    assert result.faults == ()
    assert (result.engine.resident, result.engine.on_cpu, result.engine.findings) == (True, 0, ())
    assert result.engine.correct is True
    assert result.parity is not None
    assert result.parity.snr_db >= 90
    assert result.engine.adapter != "no adapter"


@pytest.mark.parametrize(("plant", "operators"), [("broadcast", {"BROADCAST_TO"}), ("rank5", {"RESHAPE", "TRANSPOSE"})])
def test_ops_left_to_the_cpu_are_named(verdict: Judged, plant: str, operators: set[str]) -> None:
    """The numbers are right all the same: the engine's CPU takes part in them."""
    result = verdict(plant)
    assert (result.engine.resident, result.engine.correct) == (False, True)
    assert {finding.operator for finding in result.engine.findings} == operators
    assert {finding.module for finding in result.engine.findings} == {"middle"}
    assert all(finding.certain for finding in result.engine.findings)
    assert len(result.engine.findings) <= result.engine.on_cpu < result.engine.ops
    assert result.parity is not None
    assert result.parity.snr_db >= 90
    (fault,) = result.faults
    assert "left to the CPU" in fault
    assert "of middle" in fault


def test_a_resident_graph_that_is_wrong(verdict: Judged) -> None:
    result = verdict("masked")
    assert (result.engine.resident, result.engine.on_cpu) == (True, 0)
    assert result.engine.correct is False
    (finding,) = result.engine.findings
    assert finding.module == "middle"
    assert finding.operator in ("ADD", "SOFTMAX")
    assert "rank 3" in finding.advice
    wrong, blame = result.faults
    assert "all on the GPU, but wrong: snr" in wrong
    assert "to blame first" in blame


def test_a_convolution_over_too_many_channels(verdict: Judged) -> None:
    """The engine reports success and answers with zeros."""
    result = verdict("wide")
    assert (result.engine.resident, result.engine.on_cpu) == (True, 0)
    (finding,) = result.engine.findings
    assert (finding.operator, finding.module) == ("CONV_2D", "middle.conv")
    assert "split_wide_conv2d" in finding.advice
    refused, wrong, blame = result.faults
    assert "the device refuses" in refused
    assert "exceeded maximum texture size" in refused
    assert "all on the GPU, but wrong: snr" in wrong
    assert "to blame first" in blame


def test_a_crash_is_a_result(verdict: Judged) -> None:
    result = verdict("crash")
    assert (result.engine.resident, result.engine.correct) == (None, None)
    (finding,) = result.engine.findings
    assert (finding.operator, finding.module) == ("BATCH_MATMUL", "middle")
    assert "already a consumer" in finding.reason
    assert "the process" in result.faults[0]


def test_the_time_limit_is_a_result(planted: Callable[[str], Path]) -> None:
    (result,) = verify_on_gpu(planted("resident"), None, 0.01).components
    assert result.engine.resident is None
    assert result.faults == ("the process was stopped at the time limit of 0.01 s; give it more with --limit",)


def test_a_file_that_is_wrong_itself(planted: Callable[[str], Path]) -> None:
    """Judged by another decoder's golden cases: the engine is not to blame."""
    (result,) = verify_on_gpu(planted("resident"), planted("masked") / GOLDEN_FOLDER, LIMIT_S).components
    assert result.engine.resident is True
    assert result.faults[-1] == "XNNPACK computes the same: it is the file that falls short"


def test_no_op_is_blamed_where_none_is_wrong(planted: Callable[[str], Path]) -> None:
    out = planted("resident")
    (case,) = read_golden(out / GOLDEN_FOLDER).cases
    search = Search(out / ARTIFACT, case.inputs(COMPONENT), 90.0, LIMIT_S, failing=False)
    assert first_bad_op(search, lambda _: None) is None
    assert first_bad_op(dataclasses.replace(search, failing=True), lambda _: None) is None
    other = {"latent": np.zeros(2, np.float32)}
    assert first_bad_op(dataclasses.replace(search, failing=True, inputs=other), lambda _: None) is None


def test_run_on_gpu(planted: Callable[[str], Path]) -> None:
    out = planted("rank5")
    (case,) = read_golden(out / GOLDEN_FOLDER).cases
    made, note = run_on_gpu(out / ARTIFACT, case.inputs(COMPONENT), LIMIT_S)
    assert compare(made["image"], case.output("vae_decoder", "image")).snr_db >= 90
    assert "on the CPU" in note
    with pytest.raises(RuntimeFault, match=r"input latent must be float32\[1, 12, 7, 11\], not float32\[2\]"):
        run_on_gpu(out / ARTIFACT, {"latent": np.zeros(2, np.float32)}, LIMIT_S)
    with pytest.raises(RuntimeFault, match="has the inputs latent; it was given x"):
        run_on_gpu(out / ARTIFACT, {"x": np.zeros(2, np.float32)}, LIMIT_S)


@pytest.mark.slow
def test_the_nano_export_fits(exported: Exported) -> None:
    result = verify_on_gpu(exported("tflite", "int8"), None, 600.0)
    assert result.failures == ()
    assert [(item.component, item.engine.resident) for item in result.components] == [
        ("text_encoder", True),
        ("unet", True),
        ("vae_decoder", True),
    ]
