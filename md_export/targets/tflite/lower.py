"""Lower a torch module to a float .tflite file by litert_torch, with the artifact's input and output names."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from md_export.errors import ConversionError, raised_as
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.system.memory import release_weights
from md_export.system.vendors import replaced
from md_export.targets.contract import LoweringJob
from md_export.targets.lowering import check_module_globs, check_surface, example_of, quiet
from md_export.targets.tflite import flatbuffer
from md_export.targets.tflite.expansions import doubled_by_joining
from md_export.targets.tflite.products import products_of_rank_4
from md_export.targets.tflite.target import TfliteModel
from md_export.targets.tflite.weights import OPERATIONS

SIGNATURE: Final = "main"
_FLOAT: Final = "float32"
# Functions of litert_torch's layout pass: a convolution and transpositions.
_HIDE_NOTHING: Final = frozenset({"conv_nhwc", "tensor_to_nhwc", "tensor_to_nchw", "getitem"})
# XNNPACK has no convolution with float values and 4-bit weights, and LiteRT's kernel reads past a map that is not
# larger than the filter (ai-edge-litert 2.3.0).
_WRONG: Final[Mapping[tuple[str, str], str]] = {
    ("int4", "float32"): ", which LiteRT computes wrongly on small maps on a CPU; with int8_dynamic a GPU computes in "
    "float all the same"
}


class _Named(nn.Module):
    """The component with keyword inputs and a dict output, because litert_torch derives the names from them."""

    def __init__(self, job: LoweringJob) -> None:
        super().__init__()
        self.add_module(flatbuffer.COMPONENT, job.module)
        self.inputs = tuple(spec.name for spec in job.inputs)
        self.outputs = tuple(spec.name for spec in job.outputs)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        made = getattr(self, flatbuffer.COMPONENT)(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, made if isinstance(made, tuple) else (made,), strict=True))


def lower(job: LoweringJob) -> TfliteModel:
    """Convert ``job.module`` to a float32 file in ``job.workdir``.

    Tensors are named after the torch modules that compute them (see :func:`~.flatbuffer.module_paths_as_names`).

    Raises:
        ConversionError: this target does not support the scheme, litert_torch failed, or inputs and outputs of its file
            differ from the job's.
    """
    # Check before the conversion, which takes minutes.
    check_scheme(job)
    path = scratch_file(job.workdir)
    # litert_torch reads this at every stage, and otherwise prints to standard output.
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    with quiet():
        _convert(job, path)
    gc.collect()  # the converter's program holds the weights and has reference cycles
    _check_surface(job, path)
    return TfliteModel(path)


def scratch_file(folder: Path) -> Path:
    """Create a new empty file in ``folder`` and return its path."""
    handle, name = tempfile.mkstemp(suffix=".tflite", dir=folder)
    os.close(handle)
    return Path(name)


def _convert(job: LoweringJob, path: Path) -> None:
    import litert_torch
    from litert_converter.mlir import ir

    errors = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ir.MLIRError)
    what, names = f"litert_torch cannot convert {job.component}", flatbuffer.module_paths_as_names(job.component)
    changes = names, _one_trace_less(), doubled_by_joining(), products_of_rank_4(job.module)
    with raised_as(ConversionError, what, errors), ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        signature = litert_torch.signature(SIGNATURE, _Named(job).eval(), sample_kwargs=example_of(job))
        # Weights as resources, not as attributes that every pass copies: the same graph, and the full-size UNet needs
        # half of the memory and a quarter of the time.
        converted = signature.convert(lightweight_conversion=True)
        # The converted model has copies of the weights, and writing makes further ones.
        release_weights(job.module)
        flatbuffer.attach_notes(converted, job.notes)
        converted.export(str(path))


@contextmanager
def _one_trace_less() -> Iterator[None]:
    """Skip litert_torch's trace between its layout pass and its lowering, which traces the graph itself.

    The trace takes a third of a conversion's time (litert_torch 0.10). Later passes search operations by name, so it is
    skipped only if the functions that the layout pass inserts hide no such operation; its upsampling hides one.
    """
    from litert_torch.fx_infra import CanonicalizePass, ExportedProgramPassResult

    trace = CanonicalizePass.call

    def call(self: Any, program: ExportedProgram) -> Any:
        calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
        plain = all(
            isinstance(target, OpOverload) or getattr(target, "__name__", "") in _HIDE_NOTHING for target in calls
        )
        return ExportedProgramPassResult(program, True) if plain else trace(self, program)

    with replaced(CanonicalizePass, "call", call):
        yield


def _check_surface(job: LoweringJob, path: Path) -> None:
    model = flatbuffer.read_model(path)
    signature = model.signatureDefs[0]
    tensors = model.subgraphs[signature.subgraphIndex].tensors

    def specs(entries: Any) -> list[TensorSpec]:
        found = ((entry.name.decode(), tensors[entry.tensorIndex]) for entry in entries)
        return [TensorSpec(name, flatbuffer.shape_of(tensor), flatbuffer.DTYPES[tensor.type]) for name, tensor in found]

    check_surface(job, specs(signature.inputs), specs(signature.outputs))


def check_scheme(job: LoweringJob) -> None:
    """Refuse a scheme that this target does not support.

    Raises:
        ConversionError: a type, granularity or sparsity is not supported (the message lists the supported ones), or a
            glob matches no module.
    """
    storages = job.scheme.storages
    for own in storages:
        _check_storage(job.component, own)
    if job.scheme.activations != _FLOAT and not any(own.weights.startswith("int") for own in storages):
        raise _unknown(job.scheme)
    check_module_globs(job)


def _check_storage(component: str, own: QuantScheme) -> None:
    if own.refinements:
        raise ConversionError(
            f"{component}: tflite has no {own.refinements[0]}; "
            "it stores int8 and int4 with a scale per tensor or channel, and float16"
        )
    known = {activations for _, activations in OPERATIONS}
    is_float = own.weights in (_FLOAT, "float16") and own.activations in known
    if not is_float and (own.weights, own.activations) not in OPERATIONS:
        raise _unknown(own)


def _unknown(own: QuantScheme) -> ConversionError:
    known = ", ".join(f"{w} weights with {a} activations" for w, a in ((_FLOAT, _FLOAT), *OPERATIONS))
    why = _WRONG.get((own.weights, own.activations), "")
    return ConversionError(
        f"tflite cannot store {own.weights} weights with {own.activations} activations{why}; use one of: {known}; "
        "or, in a rule, float32 or float16 beside any of them"
    )
