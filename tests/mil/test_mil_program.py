"""What ``load`` and ``predict`` promise, and that what is wrong with a package is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export import mil
from md_export.errors import RuntimeFault

Edit = Callable[[Any], None]
Editor = Callable[[Edit], Path]
X = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype(np.float32)
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def _operations(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def _operation(spec: Any, kind: str) -> Any:
    return next(op for op in _operations(spec) if op.type == kind)


def _reference(package: Path) -> np.ndarray[Any, Any]:
    import torch

    program = mil.load(package, "float32")
    weight = next(v for v in program.graph.constants.values() if isinstance(v, torch.Tensor) and v.dim() == 4)
    return torch.relu(torch.nn.functional.conv2d(torch.from_numpy(X), weight.float(), padding=1)).numpy()


def test_the_surface_is_the_packages_description(conv_package: Path) -> None:
    program = mil.load(conv_package)
    assert [(f.name, f.shape, f.dtype) for f in program.inputs] == [("x", (1, 4, 8, 8), "float32")]
    assert [(f.name, f.dtype) for f in program.outputs] == [("y", "float32")]


def test_float32_computes_the_convolution(conv_package: Path) -> None:
    outputs = mil.load(conv_package, "float32").predict({"x": X})
    assert list(outputs) == ["y"]
    np.testing.assert_allclose(outputs["y"], _reference(conv_package), rtol=1e-5, atol=1e-5)


def test_storage_rounds_every_result_to_its_declared_type(conv_package: Path) -> None:
    y = mil.load(conv_package).predict({"x": X})["y"]
    assert y.dtype == np.float32
    assert np.array_equal(y, y.astype(np.float16).astype(np.float32))
    exact = _reference(conv_package)
    assert not np.array_equal(exact, exact.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(y, exact, rtol=2e-3, atol=1e-2)


def test_inputs_are_cast_as_core_ml_casts_them(conv_package: Path) -> None:
    program = mil.load(conv_package)
    whole = np.round(X)
    expected = program.predict({"x": whole})["y"]
    assert np.array_equal(program.predict({"x": whole.astype(np.int64)})["y"], expected)
    assert np.array_equal(program.predict({"x": whole.astype(np.float64).tolist()})["y"], expected)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "takes exactly"),
        ({"x": X, "z": X}, "takes exactly"),
        ({"x": X[:, :2]}, r"shape \[1, 2, 8, 8\]"),
        ({"x": np.full(X.shape, "a")}, "give numbers"),
    ],
)
def test_wrong_inputs_are_refused(conv_package: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeFault, match=message):
        mil.load(conv_package).predict(inputs)


def test_intermediates_can_be_kept(conv_package: Path) -> None:
    program = mil.load(conv_package)
    (name,) = (op.outputs[0].name for op in program.graph.ops if op.kind == "conv")
    outputs = program.predict({"x": X}, keep=[name])
    assert outputs[name].shape == (1, 16, 8, 8)
    assert outputs[name].min() < 0
    assert np.array_equal(np.maximum(outputs[name], 0).astype(np.float32), outputs["y"])
    with pytest.raises(RuntimeFault, match="no op computes nothing_of_the_kind"):
        mil.load(conv_package).predict({"x": X}, keep=["nothing_of_the_kind"])


def test_an_observer_sees_every_value_with_its_op_and_time(conv_package: Path) -> None:
    events: list[mil.Event] = []
    mil.load(conv_package).predict({"x": X}, observer=events.append)
    assert [event.kind for event in events] == ["cast", "conv", "relu", "cast"]
    assert events[-1].name == "y"
    assert all(event.seconds > 0 for event in events)
    assert max(float(event.tensor.abs().max()) for event in events) > 1


def test_nan_and_overflow_are_not_hidden(conv_package: Path) -> None:
    spoiled = X.copy()
    spoiled[0, 0, 0, 0] = np.nan
    for precision in ("storage", "float32"):
        y = mil.load(conv_package, precision).predict({"x": spoiled})["y"]
        assert np.isnan(y[0, :, 0, 0]).all()
        assert np.isfinite(y[0, :, 4, 4]).all()
    large = np.full_like(X, 3e4)
    assert np.isinf(mil.load(conv_package).predict({"x": large})["y"]).any()
    assert np.isfinite(mil.load(conv_package, "float32").predict({"x": large})["y"]).all()


def test_one_flipped_weight_byte_changes_the_output(conv_package: Path, tmp_path: Path) -> None:
    path = tmp_path / "flipped.mlpackage"
    shutil.copytree(conv_package, path)
    data = bytearray((path / WEIGHTS).read_bytes())
    data[-1] ^= 0x40
    (path / WEIGHTS).write_bytes(data)
    before, after = (mil.load(p).predict({"x": X})["y"] for p in (conv_package, path))
    assert not np.array_equal(before, after)


def test_a_prediction_leaves_the_package_untouched(conv_package: Path) -> None:
    before = (conv_package / WEIGHTS).read_bytes()
    mil.load(conv_package).predict({"x": X})
    assert (conv_package / WEIGHTS).read_bytes() == before


def test_a_wrong_declared_shape_is_caught(edited: Editor) -> None:
    def change(spec: Any) -> None:
        _operation(spec, "conv").outputs[0].type.tensorType.dimensions[1].constant.size = 17

    with pytest.raises(RuntimeFault, match=r"conv → h\S*: the program declares fp16\[1, 17, 8, 8\].*\[1, 16, 8, 8\]"):
        mil.load(edited(change)).predict({"x": X})


def test_a_wrong_declared_kind_is_caught(edited: Editor) -> None:
    from coremltools.proto import MIL_pb2

    def change(spec: Any) -> None:
        _operation(spec, "relu").outputs[0].type.tensorType.dataType = MIL_pb2.INT32

    with pytest.raises(RuntimeFault, match=r"relu → y\S*: the program declares int32"):
        mil.load(edited(change)).predict({"x": X})


def test_a_wrong_declared_width_is_caught_at_load(edited: Editor) -> None:
    from coremltools.proto import MIL_pb2

    def change(spec: Any) -> None:
        _operation(spec, "relu").outputs[0].type.tensorType.dataType = MIL_pb2.FLOAT32

    with pytest.raises(RuntimeFault, match="relu declares y"):
        mil.load(edited(change))


def test_an_unknown_op_is_named_with_its_opset_and_output(edited: Editor) -> None:
    def change(spec: Any) -> None:
        _operation(spec, "relu").type = "relu_of_tomorrow"

    with pytest.raises(RuntimeFault, match=r"relu_of_tomorrow → y.*CoreML7"):
        mil.load(edited(change))


def test_an_op_is_unknown_before_the_opset_that_brought_it(edited: Editor) -> None:
    def change(spec: Any) -> None:
        _operation(spec, "relu").type = "scaled_dot_product_attention"

    with pytest.raises(RuntimeFault, match="no op scaled_dot_product_attention of opset CoreML7"):
        mil.load(edited(change))


def test_an_argument_nobody_reads_is_refused(edited: Editor) -> None:
    def change(spec: Any) -> None:
        op = _operation(spec, "relu")
        op.inputs["slope"].CopyFrom(op.inputs["x"])

    with pytest.raises(RuntimeFault, match="does not read the argument slope"):
        mil.load(edited(change))


def test_a_missing_argument_is_refused(edited: Editor) -> None:
    def change(spec: Any) -> None:
        del _operation(spec, "conv").inputs["weight"]

    with pytest.raises(RuntimeFault, match="gives no weight"):
        mil.load(edited(change))


def test_weights_that_belong_to_another_program_are_refused(edited: Editor) -> None:
    def change(spec: Any) -> None:
        for op in _operations(spec):
            value = op.attributes["val"] if op.type == "const" else None
            if value is not None and value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.offset += 64

    with pytest.raises(RuntimeFault, match=r"no blob at|ends before"):
        mil.load(edited(change))


def test_weights_outside_the_package_are_refused(edited: Editor) -> None:
    def change(spec: Any) -> None:
        for op in _operations(spec):
            value = op.attributes["val"] if op.type == "const" else None
            if value is not None and value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = "@model_path/../../../weight.bin"

    with pytest.raises(RuntimeFault, match="outside its package"):
        mil.load(edited(change))


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=r"no \.mlpackage"):
        mil.load(tmp_path)
    with pytest.raises(RuntimeFault, match=r"no \.mlpackage"):
        mil.load(tmp_path / "nowhere.mlpackage")


def test_an_unknown_precision_or_function_is_refused(conv_package: Path) -> None:
    with pytest.raises(RuntimeFault, match="precision 'float64'"):
        mil.load(conv_package, "float64")  # type: ignore[arg-type]
    with pytest.raises(RuntimeFault, match="no function other; it has main"):
        mil.load(conv_package, function="other")


def test_intermediates_die_at_their_last_use(conv_package: Path) -> None:
    graph = mil.load(conv_package).graph
    kinds = [op.kind for op in graph.ops]
    assert graph.dead_after[kinds.index("relu")] == (graph.ops[kinds.index("conv")].outputs[0].name,)
    assert graph.dead_after[-1] == (graph.ops[-2].outputs[0].name,)


def test_a_value_nobody_computed_is_named(edited: Editor) -> None:
    def change(spec: Any) -> None:
        _operation(spec, "relu").inputs["x"].arguments[0].name = "phantom"

    with pytest.raises(RuntimeFault, match="reads phantom"):
        mil.load(edited(change)).predict({"x": X})


def test_a_state_lives_from_prediction_to_prediction(tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.converters.mil import Builder

    specs = [Builder.TensorSpec((2,)), Builder.StateTensorSpec((2,), dtype=ct.converters.mil.mil.types.fp16)]

    @Builder.program(input_specs=specs, opset_version=ct.target.iOS18)  # type: ignore[untyped-decorator]
    def program(x: Any, total: Any) -> Any:
        added = Builder.add(x=Builder.read_state(input=total), y=Builder.cast(x=x, dtype="fp16"))
        return Builder.coreml_update_state(state=total, value=added)

    path = tmp_path / "stateful.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS18).save(str(path))
    loaded = mil.load(path)
    (output,) = (feature.name for feature in loaded.outputs)
    state = loaded.make_state()
    x = np.array([1.0, 2.0], np.float32)
    assert loaded.predict({"x": x}, state=state)[output].tolist() == [1.0, 2.0]
    assert loaded.predict({"x": x}, state=state)[output].tolist() == [2.0, 4.0]
    assert loaded.predict({"x": x}, state=loaded.make_state())[output].tolist() == [1.0, 2.0]
    with pytest.raises(RuntimeFault, match="make_state"):
        loaded.predict({"x": x})
