"""Which constants of a program are weights, which torch module owns each, and which stay in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, Final

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.package import Lowered, main_operations
from md_export.targets.coreml.vendor import ct

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
LEAST_ELEMENTS: Final = 10
_FLOATS: Final = ("FLOAT32", "FLOAT16")


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
    kind = ct.proto.MIL_pb2.DataType.Name(tensor.dataType)
    return value.name in used and kind in _FLOATS and len(sizes) >= 2 and prod(sizes) >= LEAST_ELEMENTS


def kept_weights(weights: frozenset[str], model: Lowered, job: LoweringJob) -> frozenset[str]:
    """Those of the weights that ``keep_float`` names.

    Raises:
        ConversionError: a glob that matches no module.
    """
    paths = [path for path, _ in job.module.named_modules()]
    for glob in job.scheme.keep_float:
        only = replace(job.scheme, keep_float=(glob,))
        if not any(only.keeps_float(path) for path in paths):
            raise ConversionError(f"{job.component}: keep_float glob {glob!r} matches no module; correct the recipe")
    return frozenset(name for name in weights if job.scheme.keeps_float(_module(name, model.modules)))


def _module(constant: str, modules: Mapping[str, str]) -> str:
    return modules.get(constant.removesuffix("_to_fp16"), "")
