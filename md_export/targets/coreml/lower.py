"""Torch module → ML program: torch.export, then coremltools.

torch.export and not ``torch.jit.trace``: its shapes are numbers, where a trace holds tensors on
which coremltools 9.0 fails (the relu attention's scale / L becomes the inverse of an int32; ``_cast``
of a one-element array under numpy 2.4). Both give the same operations for every component, with the
same peak memory. Form rewrites happen on the module before it comes here.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.export import ExportedProgram

from md_export.errors import ConversionError
from md_export.spec.tensors import TensorSpec
from md_export.system.memory import let_go_of_weights
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.modules import number_nodes, operation_modules
from md_export.targets.coreml.overflow import lean_overflow_check
from md_export.targets.coreml.package import read_spec
from md_export.targets.coreml.precision import compute_precision
from md_export.targets.coreml.surface import feature_specs
from md_export.targets.coreml.target import CoremlModel
from md_export.targets.coreml.vendor import converting, ct

# Oldest system that must load a package whose recipe names none.
DEPLOYMENT_TARGET: Final = "iOS17"


def lower(job: LoweringJob) -> CoremlModel:
    """Convert ``job.module`` in float32 or float16 arithmetic; what is smaller comes with :func:`quantize`.

    Raises:
        ConversionError: the scheme is none of Core ML's, an operation cannot be converted, or the
            program's inputs and outputs are not the job's.
    """
    precision = compute_precision(job)
    with converting(job.component, "tracing"):
        program = _export(job)
    let_go_of_weights(job.module)
    paths = number_nodes(program)
    package = job.workdir / f"{job.component}.float.mlpackage"
    with converting(job.component, "conversion"), lean_overflow_check():
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
    gc.collect()  # the converter's program holds the weights and is full of cycles
    _check_surface(job, read_spec(package))
    return CoremlModel(package, modules, job.notes)


def deployment_target(job: LoweringJob) -> Any:
    """coremltools' enum of the job's oldest system."""
    return ct.target[job.deployment_target or DEPLOYMENT_TARGET]


def _export(job: LoweringJob) -> ExportedProgram:
    args = tuple(torch.from_numpy(np.array(job.example[spec.name])) for spec in job.inputs)
    with torch.no_grad():
        program: ExportedProgram = torch.export.export(job.module, args).run_decompositions({})
    _drop_aliases(program)
    return program


def _drop_aliases(program: ExportedProgram) -> None:
    """Remove ``aten.alias``, which copies nothing and which coremltools 9.0 does not know (9.1 does)."""
    graph = program.graph_module.graph
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.alias.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    program.graph_module.recompile()


def _weight_modules(program: ExportedProgram) -> dict[str, str]:
    """Placeholder, which coremltools takes as the constant's name → path of the module that owns it."""
    signature = program.graph_signature
    owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return {placeholder: path.rpartition(".")[0] for placeholder, path in owned.items()}


def _tensor_type(spec: TensorSpec, **shape: Sequence[int]) -> Any:
    return ct.TensorType(name=spec.name, dtype=np.dtype(spec.dtype).type, **shape)


def _check_surface(job: LoweringJob, spec: Any) -> None:
    for wanted, found in (
        (job.inputs, feature_specs(spec.description.input)),
        (job.outputs, feature_specs(spec.description.output)),
    ):
        if tuple(wanted) != found:
            raise ConversionError(
                f"{job.component}: the program has {found}, the job asks for {tuple(wanted)}; "
                "a rewrite changed the module's inputs or outputs"
            )
