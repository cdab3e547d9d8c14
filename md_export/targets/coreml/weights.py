"""Which constants of a program are weights, which torch module owns each, and how each is stored."""

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
# Scales and tables are float16, as the weights that they stand for.
_BITS: Final = 16


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


def storage_of(weights: frozenset[str], model: CoremlModel, job: LoweringJob) -> dict[str, QuantScheme]:
    """How each weight is stored, by name: those left out stay float, by ``keep_float`` or by a rule.

    Raises:
        ConversionError: a glob of ``keep_float`` or of a rule that matches no module.
    """
    check_module_globs(job)
    scheme, owners = job.scheme, {name: _module(name, model.modules) for name in weights}
    stored = {name: scheme.for_module(path) for name, path in owners.items() if not scheme.keeps_float(path)}
    return {name: own for name, own in stored.items() if not own.keeps_weights}


def _module(constant: str, modules: Mapping[str, str]) -> str:
    return modules.get(constant.removesuffix("_to_fp16"), "")


def weight_storage(path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
    """Return how ``compress`` stores a weight; ``scheme`` is the module's own, without rules. None: it stays float.

    The table of positions is folded to a constant that is added, and no weight.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding) or path.endswith("position_embedding"):
        return None
    shape = tuple(layer.weight.shape)
    if scheme.weights.startswith("float") or not pays(shape, 0, _BITS // 8, scheme):
        return None
    storage = palette_storage if scheme.palette_bits else integer_storage
    return storage(shape, scheme, _BITS)


def pays(shape: tuple[int, ...], made: int, itemsize: int, scheme: QuantScheme) -> bool:
    """Whether indices and tables together are smaller than the values, both in bits.

    Args:
        shape: of the weight.
        made: axis of its output channels.
        itemsize: bytes of a value.
        scheme: everything but a palette pays.
    """
    if not scheme.palette_bits:
        return True
    tables = shape[made] // largest_divisor(shape[made], scheme.group_size) if scheme.group_size else 1
    kept, width = prod(shape) * (1 - (scheme.sparsity or 0)), 8 * itemsize
    return bool(kept * scheme.palette_bits + tables * 2**scheme.palette_bits * width < kept * width)
