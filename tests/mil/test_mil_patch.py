"""coremltools' own models predicting with our runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from md_export import mil
from md_export.errors import RuntimeFault

X = np.random.default_rng(2).standard_normal((1, 4, 8, 8)).astype(np.float32)


def test_mlmodel_predicts_what_our_runtime_computes_and_only_inside(conv_package: Path) -> None:
    import coremltools as ct

    model = ct.models.MLModel(str(conv_package))
    with mil.patch_predict():
        one = model.predict({"x": X})
        many = model.predict([{"x": X}, {"x": 2 * X}])
    assert np.array_equal(one["y"], mil.load(conv_package).predict({"x": X})["y"])
    assert np.array_equal(many[0]["y"], one["y"])
    assert not np.array_equal(many[1]["y"], one["y"])
    with pytest.raises(Exception, match="macOS"):
        model.predict({"x": X})


def test_the_patch_is_undone_after_an_error(conv_package: Path) -> None:
    import coremltools as ct

    saved = ct.models.MLModel.predict
    with pytest.raises(RuntimeFault), mil.patch_predict():
        ct.models.MLModel(str(conv_package)).predict({"wrong": X})
    assert ct.models.MLModel.predict is saved


def test_activations_can_be_quantized_where_core_ml_is_not(conv_package: Path, tmp_path: Path) -> None:
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    settings = cto.experimental.OpActivationLinearQuantizerConfig(mode="linear_symmetric")
    model = ct.models.MLModel(str(conv_package))
    # coremltools wants the program itself for this, which only a conversion leaves behind.
    model._mil_program = ct.converters.mil.frontend.milproto.load.load(
        model.get_spec(), model.get_spec().specificationVersion, model.weights_dir
    )
    with mil.patch_predict():
        quantized = cto.experimental.linear_quantize_activations(
            model, cto.OptimizationConfig(global_config=settings), [{"x": X}, {"x": -X}]
        )
    path = tmp_path / "quantized.mlpackage"
    quantized.save(str(path))
    program = mil.load(path)
    assert "quantize" in {op.kind for op in program.graph.ops}
    before, after = mil.load(conv_package).predict({"x": X})["y"], program.predict({"x": X})["y"]
    noise = float(((after - before) ** 2).sum() / (before**2).sum())
    assert 0 < noise < 10**-2.5
