"""Write an ONNX model, with its weights inside the file up to the format's limit; options of onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from md_export.errors import ConversionError, RuntimeFault, raised_as
from md_export.system.workspace import scratch_folder
from md_export.targets.contract import notes_among
from md_export.targets.onnx.clean import check_portable
from md_export.targets.onnx.target import OnnxModel
from md_export.targets.onnx.wire import data_name, in_order, write_inline

# onnxruntime's exceptions share no base class but Exception.
ORT_ERRORS: Final[tuple[type[Exception], ...]] = tuple(
    kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
# Session option: folder of external weights, for graphs that are loaded from bytes.
WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_ERRORS_ONLY: Final = 3
ORT_SUFFIX: Final = ".ort"
_DISABLED: Final[Mapping[str, tuple[str, ...]]] = {"ort": ("NchwcTransformer",), "cpu_fused": ()}
_SAVE_AS: Final = "session.save_model_format"
_DATA_NAME: Final = "session.optimized_model_external_initializers_file_name"
# protobuf refuses messages of 2 GiB; the difference is for the graph itself.
INLINE_BYTES: Final = 1_900_000_000


def session_options(optimized: bool) -> ort.SessionOptions:
    """Return session options that log only errors; without ``optimized``, the graph runs node by node as stored.

    A thread without work sleeps: spinning takes a processor from the other processes of an export.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def write_fused(source: Path, path: Path, form: str, external: bool) -> None:
    """Optimize the graph of ``source`` and write ``path``.

    ``ort``: the format of onnxruntime's small mobile builds, which neither read ONNX nor optimize a graph. It is fused
    with onnxruntime's operators for any processor; the optimizer for one kind of processor (``NchwcTransformer``) is
    disabled, as in onnxruntime's converter.

    ``cpu_fused``: ONNX with all optimizations of onnxruntime for this processor. Not portable.

    Args:
        source: a saved graph of standard operators.
        path: file to create.
        form: ``ort`` or ``cpu_fused``.
        external: the weights are too large to be inside the file.

    Raises:
        ConversionError: onnxruntime failed, or the graph is too large for the format.
    """
    options = session_options(optimized=True)
    options.optimized_model_filepath = str(path)
    if form == "ort":
        if external:
            raise ConversionError(f"{path.name}: .ort files hold 2 GB at most; export --int8, or leave out --ort")
        options.add_session_config_entry(_SAVE_AS, "ORT")
    elif external:
        options.add_session_config_entry(_DATA_NAME, data_name(path.name))
    disabled = list(_DISABLED[form])
    with raised_as(ConversionError, f"{path.name}: onnxruntime could not fuse it", ORT_ERRORS):
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled)


def as_onnx(path: Path) -> onnx.ModelProto:
    """Return the graph of an ``.ort`` file with its weights; onnxruntime converts it without a change.

    Raises:
        RuntimeFault: onnxruntime refuses the file.
    """
    options = session_options(optimized=False)
    options.add_session_config_entry(_SAVE_AS, "ONNX")
    with scratch_folder() as scratch:
        back = scratch / "back.onnx"
        options.optimized_model_filepath = str(back)
        with raised_as(RuntimeFault, f"{path.name} is not an .ort file of this onnxruntime", (*ORT_ERRORS, OSError)):
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return onnx.load(back)


def save(model: OnnxModel, path: Path) -> None:
    """Write ``path``; above 1.9 GB the weights go to ``<name>.data`` beside it.

    A model with a form in its metadata is written in that form, see :func:`write_fused`.

    Args:
        model: what :func:`lower` or :func:`quantize` returned.
        path: file to create; its folder must exist.

    Raises:
        ConversionError: the graph has operators outside the ONNX standard, or cannot be written in the form.
    """
    graph = model.model
    check_portable(graph, "quantization")
    form = notes_among(graph.metadata_props).get("form")
    if form is None:
        _write(graph, path)
        return
    with scratch_folder() as scratch:
        source = scratch / "portable.onnx"
        _write(graph, source)
        write_fused(source, path, form, weights_are_external(graph))


def _write(model: ir.Model, path: Path) -> None:
    if weights_are_external(model):
        for value in model.graph.initializers.values():
            if (tensor := value.const_value) is not None:
                # Lazy, so that one copy of a view is in memory at a time.
                ordered, shape = partial(in_order, tensor), ir.Shape(tensor.shape.numpy())
                value.const_value = ir.LazyTensor(ordered, tensor.dtype, shape=shape, name=tensor.name)
        ir.save(model, path, external_data=data_name(path.name))
        return
    with path.open("wb") as file:
        write_inline(model, file)


def weights_are_external(model: ir.Model) -> bool:
    """Whether the weights are too large to be stored inside the file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) > INLINE_BYTES
