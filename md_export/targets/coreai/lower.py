"""Torch module → Core AI program in float32 or float16, by coreai-torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.coreai.bindings import converting, ir, main_graph, name_places
from md_export.targets.coreai.quantize import check_scheme
from md_export.targets.coreai.target import CoreaiModel
from md_export.targets.lowering import half_copy

_NAME = "coreai.name"
_TYPES = {"f32": "float32", "si32": "int32"}


def lower(job: LoweringJob) -> CoreaiModel:
    """Export the module, in float16 where the scheme computes in it, else in float32.

    Returns:
        A program with one function ``main``, surface float32/int32 as in ``job``.

    Raises:
        ConversionError: the scheme is not supported, a converter failed, or made another surface than the job's.
    """
    check_scheme(job)
    module = half_copy(job.module) if job.scheme.activations == "float16" else job.module
    with converting(job.component, "conversion"):
        exported = _export(module, job)
        program = _convert(exported, job)
        name_places(program, exported)
    _check_surface(program, job)
    return CoreaiModel(program)


def _export(module: nn.Module, job: LoweringJob) -> Any:
    from coreai_torch import get_decomp_table

    args = tuple(torch.from_numpy(np.array(job.example[spec.name])) for spec in job.inputs)
    with torch.no_grad():
        return torch.export.export(module, args).run_decompositions(get_decomp_table())


def _convert(exported: Any, job: LoweringJob) -> Any:
    from coreai_torch import TorchConverter

    # Debug mode alone keeps torch's names of nodes; paths of source files are taken out afterwards.
    converter = TorchConverter(mode=TorchConverter.Mode.DEBUG)
    names = {"input_names": [spec.name for spec in job.inputs], "output_names": [spec.name for spec in job.outputs]}
    return converter.add_exported_program(exported, **names).to_coreai()


def _check_surface(program: Any, job: LoweringJob) -> None:
    graph = main_graph(program)
    kinds = ir.FunctionType(ir.TypeAttr(graph.attributes["function_type"]).value)
    values = zip(
        (*_names(graph.attributes["arg_attrs"]), *_names(graph.attributes["res_attrs"])),
        (*kinds.inputs, *kinds.results),
        strict=True,
    )
    found = [(name, tuple(kind.shape), _TYPES.get(str(kind.element_type), "")) for name, kind in values]
    expected = [(spec.name, spec.shape, spec.dtype) for spec in (*job.inputs, *job.outputs)]
    if found != expected:
        raise ConversionError(f"{job.component}: the program has inputs and outputs {found}, not {expected}")


def _names(attributes: Any) -> list[str]:
    return [str(ir.StringAttr(ir.DictAttr(held)[_NAME]).value) for held in ir.ArrayAttr(attributes)]
