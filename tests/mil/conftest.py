"""Small ML programs, converted once per session, and a way to alter a saved one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Edit = Callable[[Any], None]


@pytest.fixture(scope="session")
def conv_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 iOS17 program: x [1, 4, 8, 8] → conv (16 channels) → relu → y, float32 at the surface."""
    import coremltools as ct
    from coremltools.converters.mil import Builder

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 4, 3, 3)).astype(np.float32)

    @Builder.program(input_specs=[Builder.TensorSpec((1, 4, 8, 8))], opset_version=ct.target.iOS17)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        h = Builder.conv(x=x, weight=weight, pad_type="same", name="h")
        return Builder.relu(x=h, name="y")

    path = tmp_path_factory.mktemp("mil") / "conv.mlpackage"
    ct.convert(program, minimum_deployment_target=ct.target.iOS17).save(str(path))
    return path


@pytest.fixture
def edited(conv_package: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """Copy the package and change its specification."""
    from coremltools.proto import Model_pb2

    def edit(change: Edit) -> Path:
        path = tmp_path / "edited.mlpackage"
        shutil.copytree(conv_package, path)
        file = path / "Data/com.apple.CoreML/model.mlmodel"
        spec = Model_pb2.Model()
        spec.ParseFromString(file.read_bytes())
        change(spec)
        file.write_bytes(spec.SerializeToString())
        return path

    return edit
