"""Lower a torch module to an ML program, by torch.export and coremltools.

torch.export is used instead of ``torch.jit.trace`` because its shapes are numbers. A trace has tensors
there, on which coremltools 9.0 fails (the relu attention's scale / L becomes the inverse of an int32;
``_cast`` of a one-element array under numpy 2.4). Both give the same operations for every component,
with the same peak memory. Rewrites are applied to the module before this stage.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch.export import ExportedProgram

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.system.memory import release_weights
from md_export.system.vendors import replaced
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.package import feature_specs, number_nodes, operation_modules, read_spec
from md_export.targets.coreml.target import CoremlModel
from md_export.targets.coreml.vendor import converting, ct
from md_export.targets.lowering import check_surface, example_of

_COMPRESSED: Final = ("int8", "int4", "palette8", "palette6", "palette4", "palette3", "palette2")
_FLOAT: Final = ("float32", "float16")
# With int8 activations, a palette's table is int8, too; coremltools leaves tables of fewer than 10 entries in float.
_LEAST_BITS: Final = 4
# In the full-size UNet, 50 operations have 100 MB of weights.
_CASTS_BETWEEN: Final = 50
_TRIGONOMETRY: Final = frozenset({"sin", "cos"})
_SUMS: Final = frozenset({"add", "sub", "mul"})
_LARGEST: Final = 65504.0
# Values of at least this magnitude are infinities for coremltools, and may become infinite in float16.
_INFINITE: Final = 1e38
_AT_A_TIME: Final = 1 << 20
# Oldest system that must load a package, if the recipe names none.
DEPLOYMENT_TARGET: Final = "iOS17"


class SparesFragile:
    """Op selector of coremltools' fp16 pass: false for ops that float16 breaks, found per block before its first cast.

    These are sines, cosines and all ops before them: the arguments of the time embedding reach 999 radians, where
    float16 is off by up to 0.25, and the embedding would be off by up to 0.32.

    Also the sum x0 = a·x_T + b·output of fold_x0: if a checkpoint predicts noise, both terms are 14.6 times their
    sum, and so is their rounding. Input and output of a program are float32 anyway.
    """

    def __init__(self, now_and_then: Callable[[], None] = lambda: None) -> None:
        """``now_and_then``: called between some of the casts; each cast reads a whole weight."""
        self._spared: dict[int, frozenset[int]] = {}
        self._now_and_then, self._asked = now_and_then, 0

    def __call__(self, op: Any) -> bool:
        """Whether ``op`` may become float16."""
        self._asked += 1
        if self._asked % _CASTS_BETWEEN == 0:
            self._now_and_then()
        block = op.enclosing_block
        if id(block) not in self._spared:
            self._spared[id(block)] = frozenset(_trigonometric(block) | _last_sum(block))
        return id(op) not in self._spared[id(block)]


def _trigonometric(block: Any) -> set[int]:
    pending = [op for op in block.operations if op.op_type in _TRIGONOMETRY]
    seen: set[int] = set()
    while pending:
        op = pending.pop()
        seen.add(id(op))
        pending.extend(parent for parent in _parents(op) if id(parent) not in seen)
    return seen


def _last_sum(block: Any) -> set[int]:
    """Return the ops before an output that only scale and add, if one of them reads an input of the program."""
    pending = [v.op for v in block.outputs if v.op is not None and v.op.op_type in _SUMS]
    seen: dict[int, Any] = {}
    while pending:
        op = pending.pop()
        seen[id(op)] = op
        pending.extend(parent for parent in _parents(op) if parent.op_type in _SUMS and id(parent) not in seen)
    return set(seen) if any(v.op is None for op in seen.values() for v in _variables(op)) else set()


def _parents(op: Any) -> list[Any]:
    return [v.op for v in _variables(op) if v.op is not None]


def _variables(op: Any) -> list[Any]:
    return [v for value in op.inputs.values() for v in (value if isinstance(value, (list, tuple)) else (value,))]


def compute_precision(job: LoweringJob) -> Any:
    """Return coremltools' ``compute_precision`` for the job's scheme; int8 activations are float16 between operations.

    Raises:
        ConversionError: Core ML or the job's oldest system does not support the pair of weights and activations; the
            message lists the supported ones.
    """
    storages = job.scheme.storages
    unknown = next((scheme for scheme in storages if not _is_known(scheme)), None)
    if unknown is None and all(_is_float_in_int8(scheme) for scheme in storages):
        unknown = job.scheme
    if unknown is not None:
        raise ConversionError(
            f"{job.component}: Core ML has no scheme weights={unknown.weights}, activations={unknown.activations}; "
            f"choose weights/activations from float32/float32, float16/float16, or {', '.join(_COMPRESSED)} with "
            f"float16, float32 or int8_static, int8_static with palettes of {_LEAST_BITS} bits and more; "
            "a float16 part beside int8_static is float16/float16"
        )
    newer = next((found for scheme in storages if (found := _since_ios18(scheme))), None)
    if newer and job.deployment_target != "iOS18":
        raise ConversionError(f'{job.component}: {newer} needs iOS 18; set deployment_target = "iOS18" in the recipe')
    if job.scheme.activations == "float32":
        return ct.precision.FLOAT32
    return ct.transform.FP16ComputePrecision(op_selector=SparesFragile(lambda: release_weights(job.module)))


def _is_known(scheme: QuantScheme) -> bool:
    if scheme.weights in _FLOAT:
        return scheme.weights == scheme.activations or _is_float_in_int8(scheme)
    if scheme.activations == "int8_static":
        return (scheme.palette_bits or _LEAST_BITS) >= _LEAST_BITS
    return scheme.activations in _FLOAT


def _is_float_in_int8(scheme: QuantScheme) -> bool:
    """Whether a rule may request this: a float16 part beside int8; a whole component cannot."""
    return (scheme.weights, scheme.activations) == ("float16", "int8_static")


def _since_ios18(scheme: QuantScheme) -> str | None:
    """Return the part of a scheme that needs iOS 18 ("What's New" of the optimizations, in coremltools' guide)."""
    features = (
        (scheme.weights == "int4", "int4"),
        (scheme.palette_bits == 3, "a palette of 3 bits"),
        (scheme.granularity == "block", "a scale per block"),
        (scheme.granularity == "group", "a table per group"),
        (bool(scheme.palette_bits) and scheme.activations == "int8_static", "a table of int8"),
        (scheme.sparsity is not None and scheme.weights not in _FLOAT, f"sparse {scheme.weights}"),
    )
    return next((name for present, name in features if present), None)


@contextmanager
def lean_conversion() -> Iterator[None]:
    """Within the block, make coremltools 9.0 convert with less memory and time, with the same result.

    Its overflow check (mil/passes/defs/quantization.py) makes an index array for each axis of a weight, five 64-bit
    numbers for each float of a convolution; that was the memory peak of a conversion. :func:`overflows` replaces it. It
    also validates the whole program after each of about 110 passes, a fifth of the time; that is skipped, because the
    saved package is executed and judged.
    """
    from coremltools.converters.mil import Program

    precision, unchecked = ct.transform.FP16ComputePrecision, replaced(Program, "validate", lambda *_, **__: None)
    with replaced(precision, "fp16_overflow", staticmethod(overflows)), unchecked:
        yield


def overflows(op: Any) -> bool:
    """Whether a float32 constant that ``op`` reads has finite values beyond float16's range."""
    given = [v for value in op.inputs.values() for v in (value if isinstance(value, (list, tuple)) else (value,))]
    constants = [v for v in given if v.op is not None and v.op.op_type == "const"]
    return any(_overflow(v.op.val.val) for v in constants if v.is_tensor_or_scalar_of(dtype="fp32"))


def _overflow(values: Any) -> bool:
    flat = np.asarray(values).reshape(-1)
    for start in range(0, flat.size, _AT_A_TIME):
        sizes = np.abs(flat[start : start + _AT_A_TIME])
        if bool(((sizes > _LARGEST) & (sizes < _INFINITE)).any()):
            return True
    return False


def lower(job: LoweringJob) -> CoremlModel:
    """Convert ``job.module`` in float32 or float16 arithmetic; :func:`quantize` applies smaller types.

    Raises:
        ConversionError: Core ML does not support the scheme, an operation cannot be converted, or the
            program's inputs and outputs differ from the job's.
    """
    precision = compute_precision(job)
    with converting(job.component, "tracing"):
        program = _export(job)
    release_weights(job.module)
    paths = number_nodes(program)
    package = job.workdir / f"{job.component}.float.mlpackage"
    with converting(job.component, "conversion"), lean_conversion():
        model = ct.convert(
            program,
            inputs=[_tensor_type(spec, shape=spec.shape) for spec in job.inputs],
            outputs=[_tensor_type(spec) for spec in job.outputs],
            convert_to="mlprogram",
            minimum_deployment_target=deployment_target(job),
            compute_precision=precision,
            skip_model_load=True,
            package_dir=str(package),
        )
        modules = operation_modules(model, paths) | _weight_modules(program)
    del model
    gc.collect()  # the converter's program holds the weights and has reference cycles
    description = read_spec(package).description
    check_surface(job, feature_specs(description.input), feature_specs(description.output))
    return CoremlModel(package, modules, job.notes)


def deployment_target(job: LoweringJob) -> Any:
    """Return coremltools' enum of the job's oldest system."""
    return ct.target[job.deployment_target or DEPLOYMENT_TARGET]


def _export(job: LoweringJob) -> ExportedProgram:
    args = tuple(example_of(job).values())
    with torch.no_grad():
        program: ExportedProgram = torch.export.export(job.module, args).run_decompositions({})
    _drop_aliases(program)
    return program


def _drop_aliases(program: ExportedProgram) -> None:
    """Remove ``aten.alias``; it copies nothing, and coremltools 9.0 does not support it (9.1 does)."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    program.graph_module.recompile()


def _weight_modules(program: ExportedProgram) -> dict[str, str]:
    """Map placeholders, which coremltools uses as names of constants, to paths of the modules that own them."""
    signature = program.graph_signature
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {placeholder: path.rpartition(".")[0] for placeholder, path in owned.items()}


def _tensor_type(spec: TensorSpec, **shape: Sequence[int]) -> Any:
    return ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type, **shape)
