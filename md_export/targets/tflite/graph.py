"""All content of a saved .tflite file: ops with their options, constants, inputs, outputs, versions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from md_export.errors import RuntimeFault, raised_as
from md_export.targets.stored_graph import Step, StoredConstant, StoredGraph
from md_export.targets.tflite import flatbuffer


def graph(path: Path) -> StoredGraph:
    """Read every op with the torch modules in its output's name; values are named by the numbers of their tensors.

    Scales and zero points of a tensor are additional constant inputs of the ops that read or write the tensor.

    Raises:
        RuntimeFault: the file is not a .tflite file, or has several graphs.
    """
    model = flatbuffer.read_model(path)
    with raised_as(RuntimeFault, f"{path.name}: corrupted", flatbuffer.MALFORMED, then="; export it again"):
        found, signature = _only(path, model)
        given = {str(item.tensorIndex): f"{item.name.decode()} {_type(found, item)}" for item in signature.inputs}
        made = {f"{item.name.decode()} {_type(found, item)}": str(item.tensorIndex) for item in signature.outputs}
        order = f"{_order(found.inputs, signature.inputs)} {_order(found.outputs, signature.outputs)}"
        return StoredGraph(
            given, made, tuple(_steps(model)), dict(_constants(model, found)), f"version {model.version} {order}"
        )


def surface(path: Path) -> tuple[list[str], list[str]]:
    """Return the names of a file's inputs and of its outputs, in the order of its graph.

    Raises:
        RuntimeFault: see :func:`graph`.
    """
    model = flatbuffer.read_model(path)
    with raised_as(RuntimeFault, f"{path.name}: corrupted", flatbuffer.MALFORMED, then="; export it again"):
        found, signature = _only(path, model)
        return _order(found.inputs, signature.inputs), _order(found.outputs, signature.outputs)


def _only(path: Path, model: Any) -> tuple[Any, Any]:
    """Return the only graph of a model and its only signature."""
    if len(model.subgraphs) != 1 or len(model.signatureDefs or ()) != 1:
        raise RuntimeFault(f"{path.name} must have one graph with one signature; export it again")
    return model.subgraphs[0], model.signatureDefs[0]


def _order(indices: Any, named: Any) -> list[str]:
    """Return the names of the graph's inputs or outputs, in the graph's order."""
    names = {item.tensorIndex: item.name.decode() for item in named}
    return [names.get(int(index), "?") for index in indices]


def _type(found: Any, item: Any) -> str:
    return _words(found.tensors[item.tensorIndex])


def _words(tensor: Any) -> str:
    """Describe a tensor: type, shape, and the other fields of its table."""
    dtype = flatbuffer.DTYPES.get(tensor.type, f"type {tensor.type}")
    signature = "" if tensor.shapeSignature is None else f" {_listed(tensor.shapeSignature)}"
    held = tensor.quantization
    axis = "" if held is None or held.scale is None else f" quantized on {held.quantizedDimension}"
    others = [name for name in ("isVariable", "sparsity", "variantTensors") if getattr(tensor, name, None)]
    return f"{dtype}{list(flatbuffer.shape_of(tensor))}{signature}{axis}{''.join(others)}"


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _constants(model: Any, found: Any) -> Iterator[tuple[str, StoredConstant]]:
    for number, tensor in enumerate(found.tensors):
        if flatbuffer.data_of(model, tensor).size:
            yield str(number), StoredConstant(_words(tensor), partial(_stored, model, tensor))
        for name, values in _grid(tensor).items():
            yield (
                f"{number}.{name}",
                StoredConstant(f"{name} {values.dtype}{list(values.shape)}", partial(np.asarray, values)),
            )


def _grid(tensor: Any) -> dict[str, np.ndarray[Any, Any]]:
    held = tensor.quantization
    found = {} if held is None else {"scale": held.scale, "zero": held.zeroPoint}
    return {name: np.asarray(values) for name, values in found.items() if values is not None and len(values)}


def _stored(model: Any, tensor: Any) -> np.ndarray[Any, Any]:
    raw, dtype = flatbuffer.data_of(model, tensor), flatbuffer.DTYPES.get(tensor.type, "int4")
    with raised_as(RuntimeFault, f"{tensor.name.decode()} cannot be read", ValueError, then="; export it again"):
        return raw if dtype == "int4" else raw.view(dtype)


def _steps(model: Any) -> Iterator[Step]:
    found = model.subgraphs[0]
    weighted = {op.output: op.module for op in flatbuffer.weighted_ops(model)}
    for operator in found.operators:
        name = found.tensors[operator.outputs[0]].name.decode()
        own = [weighted[name]] if name in weighted else []
        named = flatbuffer.modules_in(name) if flatbuffer.END in name else ()
        indices = [int(index) for index in (*operator.inputs, *operator.outputs) if index >= 0]
        grids = [f"{index}.{part}" for index in indices for part in _grid(found.tensors[index])]
        yield Step(
            flatbuffer.operator_name(model, operator),
            tuple(dict.fromkeys((*own, *named))),
            (*_keys(operator.inputs), *grids),
            _keys(operator.outputs),
            _settings(model, found, operator),
        )


def _settings(model: Any, found: Any, operator: Any) -> dict[str, str]:
    code = model.operatorCodes[operator.opcodeIndex]
    options = operator.builtinOptions
    return {
        **({} if options is None else {name: repr(_listed(value)) for name, value in vars(options).items()}),
        "version": f"{code.version} {code.customCode}",
        "custom": repr(_listed(operator.customOptions)),
        "operands": "".join("-" if index < 0 else "." for index in operator.inputs),
        "gives": ", ".join(_words(found.tensors[index]) for index in operator.outputs),
    }


def _keys(indices: Any) -> tuple[str, ...]:
    return tuple(str(index) for index in indices if index >= 0)
