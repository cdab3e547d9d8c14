"""Ranges measured a part of the graph at a time are those of the whole, and so is every rounded weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, StaticQuantConfig, quantize_static
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData, create_calibrator

from md_export.spec.calibration import RangeRule
from md_export.spec.recipe import QuantScheme
from md_export.spec.tensors import Arrays
from md_export.targets.contract import LoweringJob
from md_export.targets.observers import ObserverTable
from md_export.targets.onnx import ranges
from md_export.targets.onnx.lower import lower
from md_export.targets.onnx.qdq import QUANTIZED_OPS, with_pairs
from md_export.targets.onnx.ranges import measure_ranges, observed_values, split
from md_export.targets.onnx.wire import with_shapes

RULES = (RangeRule(), RangeRule("percentile", 99.9), RangeRule("mse"))
Ends = dict[str, tuple[float, ...]]
Float = tuple[ir.Model, LoweringJob]


def config(per_channel: bool = True) -> StaticQuantConfig:
    return StaticQuantConfig(
        None,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
        op_types_to_quantize=list(QUANTIZED_OPS),
    )


@pytest.fixture(scope="module")
def lowered(subject: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Float:
    """The nano decoder in float, and a job with three cases."""
    work = tmp_path_factory.mktemp("ranges")
    job = subject("vae_decoder").with_scheme(QuantScheme("float32", "float32"), work)
    return lower(job).model, replace(job, calibration=job.calibration[:3])


def ends(found: TensorsData) -> Ends:
    return {name: tuple(map(float, data.range_value)) for name, data in found.items()}


def of_the_whole(model: ir.Model, rule: RangeRule, cases: Sequence[Arrays]) -> Ends:
    """Of one session that gives every value."""
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    names = observed_values(proto, config())
    inputs = {value.name for value in proto.graph.input}
    made = sorted(names - inputs)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen = ObserverTable(rule, symmetric=False)
    for case in cases:
        values = dict(zip(made, session.run(made, dict(case)), strict=True)) | dict(case)
        for name in names:
            seen.add(name, values[name])
    return {name: tuple(float(np.float32(end)) for end in pair) for name, pair in seen.ranges().items()}


@pytest.mark.parametrize(
    ("held", "rule"), [(1, RULES[0]), (1, RULES[1]), (1 << 16, RULES[2]), (1 << 30, RULES[1])], ids=str
)
def test_parts_give_the_ranges_of_the_whole(
    held: int, rule: RangeRule, lowered: Float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node at a time and a case at a time, several of both, or all."""
    model, job = lowered
    monkeypatch.setattr(ranges, "_HELD", held)
    found = ends(measure_ranges(model, config(), replace(job, ranges=rule)))
    assert len(found) > 30 and found == of_the_whole(model, rule, job.calibration)
    assert found != of_the_whole(model, rule, job.calibration[:2])


def test_extremes_are_those_of_onnxruntime(lowered: Float, tmp_path: Path) -> None:
    model, job = lowered
    source = tmp_path / "x.onnx"
    onnx.save(ir.to_proto(model), source)
    calibrator = create_calibrator(
        source, QUANTIZED_OPS, str(tmp_path / "y.onnx"), CalibrationMethod.MinMax, extra_options={}
    )
    calibrator.collect_data(_Reader(job.calibration))
    assert ends(measure_ranges(model, config(), job)) == ends(calibrator.compute_data())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, cases: Sequence[Arrays]) -> None:
        self._cases = iter(cases)

    def get_next(self) -> Arrays | None:
        return next(self._cases, None)


def test_parts_are_no_larger_than_asked(lowered: Float) -> None:
    proto = with_shapes(lowered[0])
    observed = observed_values(proto, config())
    counts = {most: len(list(split(proto, observed, most))) for most in (1, 1 << 16, 1 << 30)}
    assert counts[1 << 30] == 1 < counts[1 << 16] < counts[1] <= len(proto.graph.node)
    (whole,) = split(proto, observed, 1 << 30)
    assert not whole.held and set(whole.made) == observed - set(whole.given)
    first = next(split(proto, observed, 1 << 16))
    assert set(first.graph.graph.node[-1].output) <= set(first.made) and first.held and first.weights


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_rounded_as_by_onnxruntime(per_channel: bool, lowered: Float, tmp_path: Path) -> None:
    """Of which the quantizer saw the extremes alone; a weight of a node that stays float is kept."""
    model, job = lowered
    own = config(per_channel)
    own.nodes_to_exclude = ["decoder.conv_out/Conv"]
    found = ir.to_proto(with_pairs(model, own, measure_ranges(model, own, job)))
    source, whole = tmp_path / "x.onnx", tmp_path / "y.onnx"
    onnx.save(ir.to_proto(model), source)
    quantize_static(
        source,
        whole,
        _Reader(job.calibration),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
        nodes_to_exclude=own.nodes_to_exclude,
        op_types_to_quantize=list(QUANTIZED_OPS),
    )
    ours, theirs = ({item.name: item for item in graph.initializer} for graph in (found.graph, onnx.load(whole).graph))
    assert ours.keys() == theirs.keys() and "decoder.conv_out.weight" in ours
    for name, item in theirs.items():
        assert ours[name].dims == item.dims
        assert np.array_equal(onnx.numpy_helper.to_array(ours[name]), onnx.numpy_helper.to_array(item)), name
