"""int8 weights: symmetric, one scale per output channel (per row of an embedding) or per tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.lower import deployment_target
from md_export.targets.coreml.package import WEIGHTS, Lowered, main_operations, read_spec
from md_export.targets.coreml.vendor import converting, ct, cto

# Only what these operations multiply with or look up is a weight. Other constants of rank 2 and more
# stay float: the frequencies of the time embedding, the causal mask, the position embedding (folded
# to one added constant).
WEIGHT_INPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "gather": ("x",),
}
# Constants of fewer elements are stored in the program and not in the weight file, and coremltools
# leaves them as they are (should_use_weight_file).
_LEAST_ELEMENTS: Final = 10
_FLOATS: Final = ("FLOAT32", "FLOAT16")


def quantize(model: Lowered, job: LoweringJob) -> Lowered:
    """Store every weight of rank ≥ 2 as int8 unless ``job.scheme.keep_float`` names its module.

    Activations stay as they were lowered. A scheme without int8 returns the model as it is.

    Raises:
        ConversionError: a glob of ``keep_float`` names no module, or a weight stayed float unasked.
    """
    if job.scheme.weights != "int8":
        return model
    weights = float_weights(read_spec(model.package))
    kept = _kept(weights, model, job)
    package = job.workdir / f"{job.component}.int8.mlpackage"
    with converting(job.component, "quantization"):
        ct.convert(
            _quantized_program(model.package, _config(job.scheme.granularity, weights - kept)),
            convert_to="mlprogram",
            minimum_deployment_target=deployment_target(job),
            compute_precision=ct.precision.FLOAT32,  # as it is: the program already has its casts
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
            package_dir=str(package),
        )
    left = float_weights(read_spec(package)) - kept
    if left:
        raise ConversionError(
            f"{job.component}: {len(left)} weights stayed float although int8 was asked for, first {min(left)}; "
            "name their modules in keep_float, or check the checkpoint for infinite values"
        )
    return Lowered(package, model.modules)


def _quantized_program(package: Path, config: Any) -> Any:
    """The program of a package with its weights as ``constexpr_affine_dequantize``, all else untouched.

    ``coremltools.optimize.coreml.linear_quantize_weights`` is this pass and then every graph pass of a
    conversion once more: ten times slower, and it wraps the indices of a gather a second time.
    """
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights

    spec = read_spec(package)
    program = load(spec, spec.specificationVersion, file_weights_dir=str((package / WEIGHTS).parent))
    linear_quantize_weights(config).apply(program)
    return program


def _config(granularity: str, names: frozenset[str]) -> Any:
    """int8 for the constants of these names, nothing else.

    Not by type of operation: equal constants of 100 elements and more are stored once, and where a norm
    and a linear share a zero bias coremltools sees a conflict.
    """
    int8 = cto.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity=f"per_{granularity}", weight_threshold=0
    )
    return cto.OptimizationConfig(op_name_configs=dict.fromkeys(names, int8))


def _kept(weights: frozenset[str], model: Lowered, job: LoweringJob) -> frozenset[str]:
    """Those of the weights that ``keep_float`` names."""
    paths = [path for path, _ in job.module.named_modules()]
    for glob in job.scheme.keep_float:
        only = type(job.scheme)(job.scheme.weights, job.scheme.activations, keep_float=(glob,))
        if not any(only.keeps_float(path) for path in paths):
            raise ConversionError(f"{job.component}: keep_float glob {glob!r} matches no module; correct the recipe")
    return frozenset(name for name in weights if job.scheme.keeps_float(_module(name, model.modules)))


def _module(constant: str, modules: Mapping[str, str]) -> str:
    return modules.get(constant.removesuffix("_to_fp16"), "")


def float_weights(spec: Any) -> frozenset[str]:
    """Names of the float constants of rank ≥ 2 that a convolution, linear, matmul or gather uses as weight."""
    operations = main_operations(spec)
    used = {
        argument.name
        for op in operations
        for key in WEIGHT_INPUTS.get(op.type, ())
        if key in op.inputs
        for argument in op.inputs[key].arguments
    }
    return frozenset(op.outputs[0].name for op in operations if op.type == "const" and _is_float(op.outputs[0], used))


def _is_float(value: Any, used: set[str]) -> bool:
    tensor = value.type.tensorType
    sizes = [dimension.constant.size for dimension in tensor.dimensions]
    elements = 1
    for size in sizes:
        elements *= size
    kind = ct.proto.MIL_pb2.DataType.Name(tensor.dataType)
    return value.name in used and kind in _FLOATS and len(sizes) >= 2 and elements >= _LEAST_ELEMENTS
