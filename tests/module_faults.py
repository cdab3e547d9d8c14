"""Change the stored weight of one torch module inside a saved artifact, in place, and put it back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a weight lies: a file, the first byte, how many, and the numpy dtype of its elements."""

    file: Path
    start: int
    nbytes: int
    dtype: str


@contextmanager
def scrambled(place: Place) -> Iterator[None]:
    """The weight's elements in reverse order, as a converter with wrong axes would leave them."""
    content = place.file.read_bytes()
    kept = content[place.start : place.start + place.nbytes]
    _write(place, np.frombuffer(kept, place.dtype)[::-1].tobytes())
    yield
    _write(place, kept)


def _write(place: Place, values: bytes) -> None:
    with place.file.open("r+b") as file:
        file.seek(place.start)
        file.write(values)


def weight_places(artifact: Path) -> dict[str, Place]:
    """Module path → where its weight is stored, for every convolution, linear and embedding."""
    return {".mlpackage": _in_package, ".tflite": _in_tflite, ".onnx": _in_onnx}[artifact.suffix](artifact)


def _in_onnx(path: Path) -> dict[str, Place]:
    import onnx

    from md_export.targets.onnx.clean import module_path
    from md_export.targets.onnx.describe import WEIGHT_INPUT

    graph, content = onnx.load(path).graph, path.read_bytes()
    tensors: Mapping[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    places = {}
    for node in graph.node:
        name = node.input[WEIGHT_INPUT[node.op_type]] if node.op_type in WEIGHT_INPUT else ""
        tensor = tensors.get(source.get(name, name))
        if tensor is not None and len(tensor.dims) > 1:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            raw = tensor.raw_data
            places[module_path(node.name)] = Place(path, content.index(raw), len(raw), dtype)
    return places


def _in_tflite(path: Path) -> dict[str, Place]:
    from md_export.targets.tflite.flatbuffer import DTYPES, END, WEIGHTED, data_of, module_of, operator_name, read_model

    model, content = read_model(path), path.read_bytes()
    tensors = model.subgraphs[0].tensors
    places: dict[str, Place] = {}
    for operator in model.subgraphs[0].operators:
        kind = operator_name(model, operator)
        weight = tensors[operator.inputs[WEIGHTED[kind]]] if kind in WEIGHTED else None
        if weight is None or END not in weight.name.decode():
            continue  # constants that modules share
        raw = data_of(model, weight).tobytes()
        module = module_of(weight.name.decode(), tensors[operator.outputs[0]].name.decode())
        if raw:
            places.setdefault(module, Place(path, content.index(raw), len(raw), DTYPES[weight.type]))
    return places


def _in_package(path: Path) -> dict[str, Place]:
    from md_export.mil.values import BlobFile
    from md_export.targets.coreml.package import WEIGHTS, main_operations, read_modules, read_spec

    spec, blobs = read_spec(path), BlobFile(path / WEIGHTS)
    modules, operations = read_modules(spec), main_operations(spec)
    constants = {op.outputs[0].name: op.attributes["val"] for op in operations if op.type == "const"}
    places = {}
    for op in operations:
        if op.type in ("conv", "linear"):
            record = blobs.record(constants[op.inputs["weight"].arguments[0].name].blobFileValue.offset)
            dtype = {"fp16": "float16", "fp32": "float32"}[record.dtype]
            places[modules[op.outputs[0].name]] = Place(path / WEIGHTS, record.start, record.nbytes, dtype)
    return places
