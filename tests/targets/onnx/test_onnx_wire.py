"""Files written and read one weight at a time are the files that onnx itself writes and reads."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from md_export.errors import RuntimeFault
from md_export.targets import TARGETS
from md_export.targets.onnx import save
from md_export.targets.onnx.target import OnnxModel
from md_export.targets.onnx.wire import MalformedFileError, in_order, read_without_weights, write_inline

target = TARGETS["onnx"].open()


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_onnx_reads_what_was_written(scheme: str, artifact: Callable[..., Path]) -> None:
    whole = onnx.load(artifact("text_encoder", scheme))
    file = BytesIO()
    write_inline(ir.from_proto(whole), file)
    assert onnx.load_from_string(file.getvalue()) == ir.to_proto(ir.from_proto(whole))


def test_writing_leaves_the_model_as_it_was(artifact: Callable[..., Path]) -> None:
    model = ir.from_proto(onnx.load(artifact("vae_decoder", "int8")))
    first, second = BytesIO(), BytesIO()
    write_inline(model, first)
    write_inline(model, second)
    assert first.getvalue() == second.getvalue()


@pytest.mark.parametrize("external", [False, True])
def test_a_view_is_written_as_its_copy(
    external: bool, artifact: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a weight that the exporter transposed."""
    monkeypatch.setattr(save, "INLINE_BYTES", 0 if external else save.INLINE_BYTES)
    written = []
    for name, order in (("copy", "C"), ("view", "F")):
        model = ir.from_proto(onnx.load(artifact("text_encoder", "fp32")))
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            values = np.array(value.const_value.numpy(), order="C" if order == "C" else "F")
            value.const_value = ir.tensor(values, name=value.name)
            assert order == "C" or values.ndim < 2 or in_order(value.const_value).numpy().flags.c_contiguous
        (tmp_path / name).mkdir()
        save.save(OnnxModel(model), tmp_path / name / "x.onnx")
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 1 + external


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_weights_stay_in_the_file(scheme: str, artifact: Callable[..., Path]) -> None:
    path = artifact("unet", scheme)
    whole, read = onnx.load(path), read_without_weights(path)
    assert len(read.SerializeToString()) < 0.5 * path.stat().st_size
    assert read.graph.node == whole.graph.node and read.graph.value_info == whole.graph.value_info
    for mine, theirs in zip(read.graph.initializer, whole.graph.initializer, strict=True):
        values = onnx.numpy_helper.to_array(mine, str(path.parent))
        assert np.array_equal(values, onnx.numpy_helper.to_array(theirs))


def test_weights_in_another_file_are_refused(artifact: Callable[..., Path], tmp_path: Path) -> None:
    """The manifest's hash covers one file beside it, by its name."""
    model = onnx.load(artifact("vae_decoder", "fp32"))
    onnx.save(model, tmp_path / "x.onnx", save_as_external_data=True, location="x.onnx.data", size_threshold=0)
    assert target.describe(tmp_path / "x.onnx") == target.describe(artifact("vae_decoder", "fp32"))
    (tmp_path / "x.onnx").rename(tmp_path / "y.onnx")
    with pytest.raises(RuntimeFault, match=r"y\.onnx is not an ONNX model: its weights are in 'x\.onnx\.data', not in"):
        target.describe(tmp_path / "y.onnx")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_an_error_of_ours(data: st.DataObject, artifact: Callable[..., Path], tmp_path: Path) -> None:
    content = artifact("vae_decoder", "int8").read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    put = data.draw(st.binary(min_size=1, max_size=12))
    cut = data.draw(st.booleans())
    path = tmp_path / "x.onnx"
    path.write_bytes(content[:at] if cut else content[:at] + put + content[at + len(put) :])
    try:
        target.describe(path)
    except RuntimeFault as error:
        assert "x.onnx" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("bytes_", [b"", b"\x00" * 16, b"\x3a\xff\xff\xff\xff\x7f", b"\x3a" + b"\xff" * 12, b"\x0b"])
def test_what_is_no_message_is_said_so(bytes_: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(bytes_)
    with pytest.raises(MalformedFileError):
        read_without_weights(tmp_path / "x.onnx")
