"""Each failure is one clear line of the right class, and a conversion that works says nothing at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from md_export.errors import ConversionError, OutputError, RuntimeFault, UsageError
from md_export.spec.recipe import QuantScheme
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.target import CoremlTarget

coreml = CoremlTarget()


class Unsupported(nn.Module):
    """Uses an operation that Core ML has not."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.special.i0(x)
        return out


def test_an_operation_that_cannot_be_converted_is_named_with_its_component(
    small_job: Callable[..., LoweringJob],
) -> None:
    with pytest.raises(ConversionError, match=r"part: Core ML conversion failed.*i0"):
        coreml.lower(small_job(Unsupported()))


def test_a_conversion_prints_nothing(small_job: Callable[..., LoweringJob], capfd: pytest.CaptureFixture[str]) -> None:
    job = small_job(nn.Linear(4, 4), QuantScheme("int8", "float32"))
    coreml.lower(job).quantize(job)
    assert capfd.readouterr() == ("", "")


def test_names_of_the_job_win_over_those_of_forward(small_job: Callable[..., LoweringJob], tmp_path: Path) -> None:
    job = small_job(nn.Linear(4, 4))
    coreml.lower(job).save(tmp_path / "a.mlpackage")
    assert set(coreml.load(tmp_path / "a.mlpackage").run({"x": np.ones((1, 4), np.float32)})) == {"y"}


def test_outputs_that_are_not_the_jobs_are_refused(small_job: Callable[..., LoweringJob]) -> None:
    with pytest.raises(ConversionError, match="a rewrite changed the module's inputs or outputs"):
        coreml.lower(small_job(nn.Linear(4, 4), out_shape=(1, 5)))


def test_a_scheme_that_core_ml_has_not_is_refused(small_job: Callable[..., LoweringJob]) -> None:
    job = small_job(nn.Linear(4, 4), QuantScheme("int8", "int8_dynamic"))
    with pytest.raises(
        ConversionError, match="part: Core ML has no scheme weights=int8, activations=int8_dynamic; choose"
    ):
        coreml.lower(job)


def test_a_glob_that_matches_nothing_is_refused(small_job: Callable[..., LoweringJob]) -> None:
    scheme = QuantScheme("int8", "float32", keep_float=("nothing.*",))
    job = small_job(nn.Linear(4, 4), scheme)
    with pytest.raises(ConversionError, match=r"glob 'nothing\.\*' matches no module"):
        coreml.lower(job).quantize(job)


def test_infinite_weights_are_not_passed_off_as_int8(small_job: Callable[..., LoweringJob]) -> None:
    linear = nn.Linear(4, 4)
    nn.init.constant_(linear.weight, torch.inf)
    job = small_job(linear, QuantScheme("int8", "float32"))
    with pytest.raises(ConversionError, match="1 weights stayed float although int8 was requested"):
        coreml.lower(job).quantize(job)


def test_an_existing_path_is_not_written_into(small_job: Callable[..., LoweringJob], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = small_job(nn.Linear(4, 4))
    with pytest.raises(OutputError, match="cannot be written"):
        coreml.lower(job).save(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": None}, "has the inputs latent; it was given none"),
        ({"more": np.zeros(1, np.float32)}, "it was given latent, more"),
        (
            {"latent": np.zeros((1, 8, 8, 7), np.float32)},
            r"input latent must be float32.*, not float32\[1, 8, 8, 7\]",
        ),
        ({"latent": np.zeros((1, 8, 8, 8), np.float64)}, r"input latent must be .*, not float64\[1, 8, 8, 8\]"),
    ],
)
def test_inputs_that_are_not_the_models_are_refused(
    change: dict[str, Any], message: str, package: Callable[..., Path], subject: Callable[..., Any]
) -> None:
    inputs = {k: v for k, v in {**subject("vae_decoder").job.example, **change}.items() if v is not None}
    with pytest.raises(RuntimeFault, match=message):
        coreml.load(package("vae_decoder", "fp16")).run(inputs)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFault, match=r"cannot be read as \.mlpackage"):
        coreml.load(tmp_path)


def test_an_unknown_runtime_is_refused(package: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="use one of mil, coreml"):
        coreml.load(package("vae_decoder", "fp16"), runtime="ane")
