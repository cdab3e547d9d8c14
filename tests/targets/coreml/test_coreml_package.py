"""What lies in a package: surface, stored types, the float32 time embedding, and the same bytes every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
from coremltools.libmodelpackage import ModelPackage
from torch import nn

from md_export.errors import ArtifactError
from md_export.spec.recipe import QuantScheme
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.package import feature_specs, main_operations, read_spec
from md_export.targets.coreml.target import CoremlTarget

coreml = CoremlTarget()

ANOTHER_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parents[1])]
from conftest import SCHEMES, build_subject, export
from small_models import NANO

out = Path(sys.argv[2])
export(build_subject("text_encoder", NANO).with_scheme(SCHEMES["int8"], out / "work"), out / "text.mlpackage")
"""


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_two_processes_write_the_same_bytes(package: Callable[..., Path], tmp_path: Path) -> None:
    package("vae_decoder", "fp16")  # what the process converted before must not matter
    here = contents(package("text_encoder", "int8"))
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, str(Path(__file__).parent), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        check=True,
        capture_output=True,
    )
    assert contents(tmp_path / "text.mlpackage") == here


def test_other_contents_give_other_identifiers(package: Callable[..., Path]) -> None:
    manifests = [(package("vae_decoder", scheme) / "Manifest.json").read_text() for scheme in ("fp32", "fp16")]
    assert manifests[0] != manifests[1]


def test_nothing_in_a_package_tells_when_or_where_it_was_made(package: Callable[..., Path]) -> None:
    for data in contents(package("unet", "int8")).values():
        assert b"conversion_date" not in data
        assert b"site-packages" not in data
        assert str(Path.cwd()).encode() not in data


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_coremltools_opens_the_package(scheme: str, package: Callable[..., Path]) -> None:
    path = package("unet", scheme)
    assert ModelPackage.isValid(str(path))
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert [feature.name for feature in spec.description.input] == ["sample", "timestep", "encoder_hidden_states"]
    root = json.loads((path / "Manifest.json").read_text())
    assert root["itemInfoEntries"][root["rootModelIdentifier"]]["name"] == "model.mlmodel"


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_the_surface_is_the_jobs(scheme: str, package: Callable[..., Path], subject: Callable[..., Any]) -> None:
    description = read_spec(package("unet", scheme)).description
    job = subject("unet").job
    assert feature_specs(description.input) == job.inputs
    assert feature_specs(description.output) == job.outputs


def test_describe_tells_the_stored_types(package: Callable[..., Path], subject: Callable[..., Any]) -> None:
    elements = sum(parameter.numel() for parameter in subject("unet").job.module.parameters())
    stored = {scheme: coreml.describe(package("unet", scheme)) for scheme in ("fp32", "fp16", "int8")}
    assert set(stored["fp32"].stored) == {"float32"}
    # Only the 16 frequencies of the time embedding stay float32.
    assert stored["fp16"].stored["float32"] == 64
    assert stored["int8"].stored["int8"] > 0.95 * elements
    assert stored["int8"].float_weights == ()
    assert len(stored["fp16"].float_weights) == stored["int8"].ops["constexpr_affine_dequantize"]


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_the_time_embedding_stays_float32(scheme: str, package: Callable[..., Path]) -> None:
    operations = main_operations(read_spec(package("unet", scheme)))
    types = {op.type: op.outputs[0].type.tensorType.dataType for op in operations}
    float32, float16 = (ct.proto.MIL_pb2.DataType.Value(name) for name in ("FLOAT32", "FLOAT16"))
    assert types["sin"] == types["cos"] == float32
    assert types["conv"] == types["linear"] == float16
    angles = {op.inputs["x"].arguments[0].name for op in operations if op.type in {"sin", "cos"}}
    assert [op.type for op in operations if op.outputs[0].name in angles] == ["mul"]


def test_kept_modules_stay_float_and_the_rest_does_not(subject: Callable[..., Any], tmp_path: Path) -> None:
    scheme = QuantScheme("int8", "float16", keep_float=("*.conv_out", "*.resnets.0"))
    job = replace(subject("vae_decoder").job, scheme=scheme, workdir=tmp_path)
    scheme_all = replace(scheme, keep_float=("*.conv_out", "*.resnets.0.*"), granularity="tensor")
    only_out = coreml.lower(job).quantize(job)
    assert {name.removesuffix("_to_fp16") for name in float_names(only_out.package)} == {"p_decoder_conv_out_weight"}
    (tmp_path / "all").mkdir()
    job = replace(job, scheme=scheme_all, workdir=tmp_path / "all")
    names = float_names(coreml.lower(job).quantize(job).package)
    assert len(names) > 1
    assert all("conv_out" in name or "resnets_0" in name for name in names)


def test_a_zero_bias_shared_with_a_norm_is_no_obstacle(small_job: Callable[..., LoweringJob]) -> None:
    # From 100 elements on coremltools stores equal constants once: norm and linear share their zeros.
    module = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128, bias=False))
    job = small_job(module, QuantScheme("int8", "float16"), width=128)
    stored = coreml.describe(coreml.lower(job).quantize(job).package).stored
    assert stored["int8"] >= 128 * 128
    assert stored["float16"] < 128 * 128


def float_names(path: Path) -> tuple[str, ...]:
    names: tuple[str, ...] = coreml.describe(path).float_weights
    return names


def test_describe_refuses_a_weight_file_of_another_package(package: Callable[..., Path], tmp_path: Path) -> None:
    for file, data in contents(package("vae_decoder", "fp16")).items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(data[: len(data) // 2] if file.endswith("weight.bin") else data)
    with pytest.raises(ArtifactError, match=r"weight\.bin has no weight at byte"):
        coreml.describe(tmp_path)
