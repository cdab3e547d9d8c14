"""What happens inside a saved .tflite file: its ops by torch module, and the values between them."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from md_export.errors import RuntimeFault
from md_export.spec.tensors import Array, Arrays
from md_export.targets.contract import Step
from md_export.targets.tflite.flatbuffer import operator_name, read_model, weighted_ops
from md_export.targets.tflite.names import END, modules_in
from md_export.targets.tflite.run import THREADS

# Place of the field in the table SubGraph of LiteRT's schema, in its vtable.
_OUTPUTS: Final = 8


def steps(path: Path) -> tuple[Step, ...]:
    """Every op with the torch modules that its output's name joins; values go by the numbers of their tensors.

    Raises:
        RuntimeFault: the file is no .tflite file.
    """
    model = read_model(path)
    weighted = {op.output: op.module for op in weighted_ops(model)}
    return tuple(_steps(model, weighted))


def _steps(model: Any, weighted: dict[str, str]) -> Iterator[Step]:
    graph = model.subgraphs[0]
    for operator in graph.operators:
        name = graph.tensors[operator.outputs[0]].name.decode()
        own = [weighted[name]] if name in weighted else []
        modules = tuple(dict.fromkeys((*own, *(modules_in(name) if END in name else ()))))
        yield Step(operator_name(model, operator), modules, _keys(operator.inputs), _keys(operator.outputs))


def _keys(indices: Any) -> tuple[str, ...]:
    return tuple(str(index) for index in indices if index >= 0)


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute by LiteRT with XNNPACK, the named values being outputs, too; float32 of what is int8.

    LiteRT can keep every value without XNNPACK, but its own CONV_2D (ai-edge-litert 2.3.0) ignores the padding where
    the filter is as large as the map.

    Raises:
        RuntimeFault: LiteRT refuses the file or the inputs.
    """
    from ai_edge_litert.interpreter import Interpreter

    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        opened = Path(scratch) / path.name
        shutil.copyfile(path, opened)
        _give(opened, [int(name) for name in names])
        try:
            interpreter = Interpreter(model_path=str(opened), num_threads=THREADS)
            interpreter.allocate_tensors()
            (signature,) = interpreter.get_signature_list()
            for name, detail in interpreter.get_signature_runner(signature).get_input_details().items():
                interpreter.set_tensor(detail["index"], np.ascontiguousarray(inputs[name]))
            interpreter.invoke()
        except (RuntimeError, ValueError, KeyError) as error:
            raise RuntimeFault(f"{path.name}: LiteRT failed: {error}") from error
        details = {str(detail["index"]): detail for detail in interpreter.get_tensor_details()}
        return {name: _float(interpreter.get_tensor(int(name)), details[name]) for name in names}


def _give(path: Path, tensors: list[int]) -> None:
    """Make tensors outputs, in place: a new list at the end of the file, to which the graph's table is led."""
    with path.open("r+b") as file:
        content = file.read()
        graph = schema.Model.GetRootAs(content).Subgraphs(0)
        outputs = sorted({*tensors, *(int(index) for index in graph.OutputsAsNumpy())})
        field = graph._tab.Pos + graph._tab.Offset(_OUTPUTS)
        start = len(content) + -len(content) % 4
        file.seek(start)
        file.write(struct.pack(f"<{len(outputs) + 1}i", len(outputs), *outputs))
        file.seek(field)
        file.write(struct.pack("<I", start - field))


def _float(value: Array, detail: dict[str, Any]) -> Array:
    scale, zero = detail["quantization"]
    real = value.astype(np.float32)
    return (real - np.float32(zero)) * np.float32(scale) if scale else real
