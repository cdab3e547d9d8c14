"""A lowered program with its weights, and activations where asked, stored as the scheme says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.activations import measure_ranges, quantize_activations
from md_export.targets.coreml.compress import compress
from md_export.targets.coreml.lower import deployment_target
from md_export.targets.coreml.package import WEIGHTS, Lowered, read_spec
from md_export.targets.coreml.vendor import converting, ct
from md_export.targets.coreml.weights import float_weights, kept_weights


def quantize(model: Lowered, job: LoweringJob) -> Lowered:
    """Store every weight of rank ≥ 2 as ``job.scheme`` says unless its ``keep_float`` names its module.

    Float weights that are not pruned need nothing: the model is returned as it is.

    Raises:
        ConversionError: a glob of ``keep_float`` names no module, a weight stayed float unasked, or int8 activations
            without calibration inputs.
    """
    scheme = job.scheme
    if scheme.weights.startswith("float") and scheme.sparsity is None:
        return model
    weights = float_weights(read_spec(model.package))
    kept = kept_weights(weights, model, job)
    package = job.workdir / f"{job.component}.{scheme.weights}.mlpackage"
    with converting(job.component, "quantization"):
        program = _read(model.package)
        if scheme.activations == "int8_static":
            quantize_activations(program, measure_ranges(model.package, _calibration(job)), weights - kept)
        small = compress(program, scheme, weights - kept)
        _write(program, package, job)
    left = float_weights(read_spec(package)) - kept - small
    if left:
        raise ConversionError(
            f"{job.component}: {len(left)} weights stayed float although {scheme.weights} was asked for, "
            f"first {min(left)}; name their modules in keep_float, or check the checkpoint for infinite values"
        )
    return replace(model, package=package)


def _calibration(job: LoweringJob) -> tuple[Any, ...]:
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
