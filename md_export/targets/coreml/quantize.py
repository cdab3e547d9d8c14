"""A lowered program with its weights, and activations where asked, stored as the scheme says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from md_export.errors import ConversionError
from md_export.spec.tensors import Arrays
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.activations import measure_ranges, quantize_activations
from md_export.targets.coreml.compress import compress
from md_export.targets.coreml.lower import deployment_target
from md_export.targets.coreml.package import WEIGHTS, read_spec
from md_export.targets.coreml.target import CoremlModel
from md_export.targets.coreml.vendor import converting, ct
from md_export.targets.coreml.weights import float_weights, storage_of


def quantize(model: CoremlModel, job: LoweringJob) -> CoremlModel:
    """Store every weight of rank ≥ 2 as ``job.scheme`` says of its module: whole, or as one of its rules says.

    With int8 activations, whatever multiplies a float weight keeps float activations.
    Float weights that are not pruned need nothing: where there are no others the model is returned as it is.

    Raises:
        ConversionError: a glob of ``keep_float`` or ``rules`` names no module, a weight stayed float unasked, or int8
            activations without calibration inputs.
    """
    if all(storage.keeps_weights for storage in job.scheme.storages):
        return model
    weights = float_weights(read_spec(model.package))
    stored = storage_of(weights, model, job)
    package = job.workdir / f"{job.component}.compressed.mlpackage"
    with converting(job.component, "quantization"):
        program = _read(model.package)
        if job.scheme.activations == "int8_static":
            narrow = frozenset(name for name, own in stored.items() if not own.weights.startswith("float"))
            ranges = measure_ranges(model.package, _calibration(job), job.ranges)
            quantize_activations(program, ranges, narrow)
        small = compress(program, stored)
        _write(program, package, job)
    left = float_weights(read_spec(package)) - (weights - stored.keys()) - small
    if left:
        first = min(left)
        asked = stored[first].weights if first in stored else job.scheme.weights
        raise ConversionError(
            f"{job.component}: {len(left)} weights stayed float although {asked} was asked for, "
            f"first {first}; name their modules in keep_float, or check the checkpoint for infinite values"
        )
    return replace(model, package=package)


def _calibration(job: LoweringJob) -> Sequence[Arrays]:
    if not job.calibration:
        raise ConversionError(f"{job.component}: int8_static needs calibration inputs; give the recipe golden prompts")
    return job.calibration


def _read(package: Path) -> Any:
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = read_spec(package)
    return load(spec, spec.specificationVersion, file_weights_dir=str((package / WEIGHTS).parent))


def _write(program: Any, package: Path, job: LoweringJob) -> None:
    ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=deployment_target(job),
        compute_precision=ct.precision.FLOAT32,  # as it is: the program already has its casts
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
        package_dir=str(package),
    )
