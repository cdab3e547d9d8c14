"""Every constant of a saved .tflite file, decoded, with the torch modules that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from md_export.errors import RuntimeFault
from md_export.spec.scheme import QuantScheme
from md_export.targets.stored import Float32, Grid, Role, StoredWeight, Use
from md_export.targets.tflite.decode import Decoded, decode
from md_export.targets.tflite.flatbuffer import (
    DTYPES,
    MALFORMED,
    WEIGHTED,
    data_of,
    operator_name,
    read_model,
)
from md_export.targets.tflite.names import END, module_of, modules_in
from md_export.targets.tflite.storage import is_promised

# Axes of a weight in the file → torch's [out, in, height, width]; of a transposed convolution [in, out, …].
_LAYOUTS: Final = {
    "CONV_2D": (0, 3, 1, 2),
    "DEPTHWISE_CONV_2D": (3, 0, 1, 2),
    "TRANSPOSE_CONV": (3, 0, 1, 2),
}
_ROLES: Final[dict[tuple[str, int], Role]] = {
    **dict.fromkeys(WEIGHTED.items(), "weight"),
    **{(name, 2): "bias" for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")},
    ("MUL", 1): "weight",
    ("ADD", 1): "bias",
}
_LEVELS: Final = {"int4": 7, "int8": 127, "int16": 2**15 - 1, "int32": 2**31 - 1}


class _Reader(NamedTuple):
    """An operator, the position at which it takes a tensor, and the name of its output."""

    kind: str
    position: int
    output: str


def stored_weights(path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
    """Every constant, one at a time.

    Raises:
        RuntimeFault: the file is no .tflite file.
    """
    model = read_model(path)
    seen: set[int] = set()
    try:
        for graph in model.subgraphs:
            readers = _readers(model, graph)
            for index, tensor in enumerate(graph.tensors):
                if data_of(model, tensor).size:
                    yield _weight(model, tensor, readers[index], scheme, is_first=tensor.buffer not in seen)
                    seen.add(tensor.buffer)
    except MALFORMED as error:
        raise RuntimeFault(f"{path.name}: corrupted: {error}; export it again") from error


def _readers(model: Any, graph: Any) -> dict[int, list[_Reader]]:
    """Who reads each tensor, seen through the DEQUANTIZE of a float16 or weight-only integer one."""
    readers: dict[int, list[_Reader]] = defaultdict(list)
    named = [(operator_name(model, operator), operator) for operator in graph.operators]
    source = {operator.outputs[0]: operator.inputs[0] for name, operator in named if name == "DEQUANTIZE"}
    for name, operator in named:
        for position, index in enumerate(operator.inputs):
            if name != "DEQUANTIZE":
                output = graph.tensors[operator.outputs[0]].name.decode()
                readers[source.get(index, index)].append(_Reader(name, position, output))
    return readers


def _weight(model: Any, tensor: Any, readers: list[_Reader], scheme: QuantScheme, is_first: bool) -> StoredWeight:
    name, raw = tensor.name.decode(), data_of(model, tensor)
    found = decode(model, tensor) if tensor.type in DTYPES else Decoded("other", raw, None)
    dtype, steps = found.dtype, found.steps if found.dtype in _LEVELS else None
    weighted = [reader for reader in readers if WEIGHTED.get(reader.kind) == reader.position]
    layout = next((_LAYOUTS[reader.kind] for reader in weighted if reader.kind in _LAYOUTS), None)
    scales = {} if steps is None else {"float32": steps.nbytes}
    return StoredWeight(
        name=name,
        dtype=dtype,
        # The quantizer lets equal constants share a buffer.
        parts={dtype: raw.nbytes, **scales} if is_first else scales,
        values=_as_torch(found.values.astype(np.float32, copy=False), layout),
        uses=tuple(dict.fromkeys(_use(name, reader) for reader in readers)),
        half=dtype == "float16",
        promised=any(_is_promised(name, reader, scheme) for reader in weighted),
        grid=None if steps is None else Grid(_as_torch(steps, layout), _LEVELS[dtype]),
    )


def _is_promised(name: str, reader: _Reader, scheme: QuantScheme) -> bool:
    return is_promised(reader.kind, scheme.for_module(module_of(name, reader.output)))


def _use(name: str, reader: _Reader) -> Use:
    named = END in name
    modules = (module_of(name, reader.output),) if named else tuple(modules_in(reader.output))
    return Use(modules, _ROLES.get((reader.kind, reader.position), ""))


def _as_torch(values: Float32, layout: tuple[int, ...] | None) -> Float32:
    return values if layout is None or values.ndim != len(layout) else values.transpose(layout)
