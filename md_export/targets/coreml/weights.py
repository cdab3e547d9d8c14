"""Find the weights among a program's constants, the torch module of each, and how each is stored."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

from torch import nn

from md_export.spec.scheme import QuantScheme, WeightStorage, integer_storage, largest_divisor, palette_storage
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.package import main_operations
from md_export.targets.coreml.target import CoremlModel
from md_export.targets.coreml.vendor import ct
from md_export.targets.lowering import check_module_globs

# Only constants that these operations multiply or look up are weights. Other constants of rank 2 and
# more stay float: the frequencies of the time embedding, the causal mask, the position embedding
# (folded into one added constant).
WEIGHT_INPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "gather": ("x",),
}
# Constants with fewer elements are stored in the program and not in the weight file, and coremltools
# does not compress them (should_use_weight_file).
LEAST_ELEMENTS: Final = 10
_FLOATS: Final = ("FLOAT32", "FLOAT16")
# Scales and tables are float16, like the weights that they represent.
_BITS: Final = 16


def float_weights(spec: Any) -> frozenset[str]:
    """Return the names of the float constants of rank ≥ 2 that a convolution, linear, matmul or gather reads."""
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


def storage_of(weights: frozenset[str], model: CoremlModel, job: LoweringJob) -> dict[str, QuantScheme]:
    """Return the scheme of each weight by name; weights that stay float by ``keep_float`` or a rule are left out.

    Raises:
        ConversionError: a glob of ``keep_float`` or of a rule matches no module.
    """
    check_module_globs(job)
    scheme, owners = job.scheme, {name: _module(name, model.modules) for name in weights}
    stored = {name: scheme.for_module(path) for name, path in owners.items() if not scheme.keeps_float(path)}
    return {name: own for name, own in stored.items() if not own.keeps_weights}


def _module(constant: str, modules: Mapping[str, str]) -> str:
    return modules.get(constant.removesuffix("_to_fp16"), "")


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """Return how ``compress`` stores a weight under the module's ``scheme`` without rules; None: in float.

    The table of positions is folded into an added constant, so it is not a weight.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) or path.endswith("position_embedding"):
        return None
    shape = tuple(layer.weight.shape)
    if scheme.weights.startswith("float") or not pays(shape, 0, _BITS // 8, scheme):
        return None
    storage = palette_storage if scheme.palette_bits else integer_storage
    return storage(shape, scheme, _BITS)


def pays(shape: tuple[int, ...], made: int, itemsize: int, scheme: QuantScheme) -> bool:
    """Whether indices and tables together have fewer bits than the values; true for anything but a palette.

    Args:
        shape: shape of the weight.
        made: axis of the output channels.
        itemsize: bytes of a value.
        scheme: scheme of the weight.
    """
    if not scheme.palette_bits:
        return True
    tables = shape[made] // largest_divisor(shape[made], scheme.group_size) if scheme.group_size else 1
    kept, width = prod(shape) * (1 - (scheme.sparsity or 0)), 8 * itemsize
    return bool(kept * scheme.palette_bits + tables * 2**scheme.palette_bits * width < kept * width)
