"""Write an ONNX model, weights inside the file as long as the format can hold them; options of onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
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
from md_export.targets.onnx.wire import data_name, write_inline

# onnxruntime's exceptions share no base class but Exception.
ORT_ERRORS: Final[tuple[type[Exception], ...]] = tuple(
    kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
# For graphs that come as bytes.
WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_ERRORS_ONLY: Final = 3
ORT_SUFFIX: Final = ".ort"
_LEFT_OUT: Final[Mapping[str, tuple[str, ...]]] = {"ort": ("NchwcTransformer",), "cpu_fused": ()}
_SAVE_AS: Final = "session.save_model_format"
_DATA_NAME: Final = "session.optimized_model_external_initializers_file_name"
# protobuf refuses messages of 2 GiB; the rest is left for the graph itself.
INLINE_BYTES: Final = 1_900_000_000


def session_options(optimized: bool) -> ort.SessionOptions:
    """Errors only; without ``optimized`` the graph is executed node by node as it is written."""
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def write_fused(source: Path, path: Path, form: str, external: bool) -> None:
    """Optimize the graph of ``source`` and write ``path``.

    ``ort``: the format of onnxruntime's small mobile builds, which read no ONNX and optimize nothing when they
    load. Fused with its operators, for any processor: what makes a graph fit one kind (``NchwcTransformer``)
    is left out, as onnxruntime's own converter leaves it out.

    ``cpu_fused``: ONNX with all that onnxruntime does for the processor at hand, done once. Not portable.

    Args:
        source: a saved graph of standard operators.
        path: file to create.
        form: ``ort`` or ``cpu_fused``.
        external: the weights are too large to lie inside.

    Raises:
        ConversionError: onnxruntime failed, or the format cannot hold so much.
    """
    options = session_options(optimized=True)
    options.optimized_model_filepath = str(path)
    if form == "ort":
        if external:
            raise ConversionError(f"{path.name}: .ort files hold 2 GB at most; export --int8, or leave out --ort")
        options.add_session_config_entry(_SAVE_AS, "ORT")
    elif external:
        options.add_session_config_entry(_DATA_NAME, data_name(path.name))
    left_out = list(_LEFT_OUT[form])
    with raised_as(ConversionError, f"{path.name}: onnxruntime could not fuse it", ORT_ERRORS):
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)


def as_onnx(path: Path) -> onnx.ModelProto:
    """The graph of an ``.ort`` file, weights inside; onnxruntime writes it back unchanged.

    Raises:
        RuntimeFault: onnxruntime refuses the file.
    """
    options = session_options(optimized=False)
    options.add_session_config_entry(_SAVE_AS, "ONNX")
    with scratch_folder() as scratch:
        back = scratch / "back.onnx"
        options.optimized_model_filepath = str(back)
        with raised_as(RuntimeFault, f"{path.name} is no .ort file of this onnxruntime", (*ORT_ERRORS, OSError)):
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return onnx.load(back)


def save(model: OnnxModel, path: Path) -> None:
    """Write ``path``; above 1.9 GB the weights go to ``<name>.data`` beside it.

    A model whose notes name a form of :mod:`md_export.targets.onnx.save` is written in that form.

    Args:
        model: what :func:`lower` or :func:`quantize` returned.
        path: file to create; its folder exists.

    Raises:
        ConversionError: the graph has operators outside the ONNX standard, or cannot have the form.
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
        ir.save(model, path, external_data=data_name(path.name))
        return
    with path.open("wb") as file:
        write_inline(model, file)


def weights_are_external(model: ir.Model) -> bool:
    """Whether the weights are too large to be stored inside the file."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None) > INLINE_BYTES
