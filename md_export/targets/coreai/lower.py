"""Lower a torch module to a Core AI program in float32 or float16, by coreai-torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from md_export.spec.tensors import TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.coreai.bindings import converting, ir, main_graph, name_places
from md_export.targets.coreai.quantize import check_scheme
from md_export.targets.coreai.target import CoreaiModel
from md_export.targets.lowering import check_surface, example_of, half_copy

_NAME = "coreai.name"
_TYPES = {"f32": "float32", "si32": "int32"}


def lower(job: LoweringJob) -> CoreaiModel:
    """Export the module in float16 if the scheme computes in float16, else in float32.

    Returns:
        A program with one function ``main``, surface float32/int32 as in ``job``.

    Raises:
        ConversionError: the scheme is not supported, a converter failed, or inputs and outputs differ from the job's.
    """
    check_scheme(job)
    module = half_copy(job.module) if job.scheme.activations == "float16" else job.module
    with converting(job.component, "conversion"):
        exported = _export(module, job)
        program = _convert(exported, job)
        name_places(program, exported)
    check_surface(job, *_surface(program))
    return CoreaiModel(program)


def _export(module: nn.Module, job: LoweringJob) -> Any:
    from coreai_torch import get_decomp_table

    args = tuple(example_of(job).values())
    with torch.no_grad():
        return torch.export.export(module, args).run_decompositions(get_decomp_table())


def _convert(exported: Any, job: LoweringJob) -> Any:
    from coreai_torch import TorchConverter

    # Only debug mode keeps torch's node names; paths of source files are removed afterwards.
    converter = TorchConverter(mode=TorchConverter.Mode.DEBUG)
    names = {"input_names": [spec.name for spec in job.inputs], "output_names": [spec.name for spec in job.outputs]}
    return converter.add_exported_program(exported, **names).to_coreai()


def _surface(program: Any) -> tuple[list[TensorSpec], list[TensorSpec]]:
    graph = main_graph(program)
    kinds = ir.FunctionType(ir.TypeAttr(graph.attributes["function_type"]).value)
    return _specs(graph.attributes["arg_attrs"], kinds.inputs), _specs(graph.attributes["res_attrs"], kinds.results)


def _specs(attributes: Any, kinds: Any) -> list[TensorSpec]:
    names = [str(ir.StringAttr(ir.DictAttr(held)[_NAME]).value) for held in ir.ArrayAttr(attributes)]
    return [
        TensorSpec(name, tuple(kind.shape), _TYPES.get(str(kind.element_type), ""))
        for name, kind in zip(names, kinds, strict=True)
    ]
