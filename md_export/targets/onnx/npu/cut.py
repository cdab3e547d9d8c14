"""Cut a saved graph into a sequence of blocks, each a separate file with float32 inputs and outputs.

    Y → QuantizeLinear → DequantizeLinear → Y'        between two blocks: both have the pair, the first returns Y'
    Y in float16                                      the first returns Cast(Y), the second reads Cast(Y)

so that each block's output is the next block's input, and each block computes the same as the whole graph there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from md_export.errors import RuntimeFault, raised_as
from md_export.targets.onnx.describe import UNSHAPED, costs, read_unfused
from md_export.targets.onnx.npu.plan import Part, own_nodes, plan, titles
from md_export.targets.onnx.npu.process import CutBlock

_HALF: Final = onnx.TensorProto.FLOAT16
_FLOAT: Final = onnx.TensorProto.FLOAT
_MARKING: Final = ("QuantizeLinear", "DequantizeLinear")
# Prefix of names that exporters do not use.
_INSIDE: Final = "md_export.inside/"


@dataclass(frozen=True)
class Whole:
    """A graph with the shapes of its values; weights are in files of ``folder``.

    Attributes:
        made_by: number of the node that computes a value.
        shapes, types: shapes and ONNX type numbers of values.
    """

    model: onnx.ModelProto
    folder: Path
    made_by: Mapping[str, int]
    constants: Mapping[str, onnx.TensorProto]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]

    @classmethod
    def of(cls, model: onnx.ModelProto, folder: Path) -> Whole:
        """Create it from a parsed model with inferred shapes."""
        graph = model.graph
        known = [(info.name, info.type.tensor_type) for info in (*graph.input, *graph.value_info, *graph.output)]
        return cls(
            model,
            folder,
            {name: number for number, node in enumerate(graph.node) for name in node.output if name},
            {tensor.name: tensor for tensor in graph.initializer},
            {name: tuple(size.dim_value for size in kind.shape.dim) for name, kind in known},
            {name: kind.elem_type for name, kind in known},
        )

    @property
    def graph(self) -> onnx.GraphProto:
        """Nodes and constants."""
        return self.model.graph

    def marked(self, name: str) -> str:
        """Return the value that readers use: the result of its pair of QuantizeLinear and DequantizeLinear, if any."""
        end = name
        for kind in _MARKING:
            after = [node.output[0] for node in self.graph.node if node.op_type == kind and node.input[0] == end]
            if not after:
                return name
            end = after[0]
        return end

    def unmarked(self, name: str) -> str:
        """Return the value before such a pair, given the value after it."""
        while name in self.made_by and self.graph.node[self.made_by[name]].op_type in _MARKING:
            name = self.graph.node[self.made_by[name]].input[0]
        return name


def write_piece(
    whole: Whole, nodes: Sequence[int], inputs: Sequence[str], outputs: Mapping[str, str], path: Path
) -> None:
    """Write some nodes as a model; its inputs and outputs are float32 where the graph has float16.

    Args:
        nodes: nodes in an order of execution.
        inputs: values that are computed outside.
        outputs: name of an output → name of the value in the graph.
    """
    halves = [name for name in (*inputs, *outputs.values()) if whole.types[name] == _HALF]
    names = {name: f"{_INSIDE}{name}" for name in (*outputs, *halves) if name not in outputs.values() or name in halves}
    names |= {name: outer for outer, name in outputs.items() if name not in halves}
    body = [onnx.NodeProto.FromString(whole.graph.node[number].SerializeToString()) for number in nodes]
    for node in body:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    read = {name for node in body for name in node.input}
    graph = onnx.helper.make_graph(
        [
            *(_cast(name, names[name], _HALF) for name in inputs if name in halves),
            *body,
            *(_cast(names[name], outer, _FLOAT) for outer, name in outputs.items() if name in halves),
        ],
        path.stem,
        [_surface(whole, name, name) for name in inputs],
        [_surface(whole, outer, name) for outer, name in outputs.items()],
        [_loaded(tensor, whole.folder) for name, tensor in whole.constants.items() if name in read],
    )
    version = whole.model.ir_version
    onnx.save(onnx.helper.make_model(graph, opset_imports=whole.model.opset_import, ir_version=version), path)


def _cast(given: str, made: str, kind: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [given], [made], name=f"/{made}", to=kind)


def _surface(whole: Whole, outer: str, name: str) -> onnx.ValueInfoProto:
    kind = whole.types[name]
    return onnx.helper.make_tensor_value_info(outer, _FLOAT if kind == _HALF else kind, whole.shapes[name])


def _loaded(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    own: onnx.TensorProto = onnx.TensorProto.FromString(tensor.SerializeToString())
    if own.data_location == onnx.TensorProto.EXTERNAL:
        onnx.external_data_helper.load_external_data_for_tensor(own, str(folder))
        own.data_location = onnx.TensorProto.DEFAULT
        del own.external_data[:]
    return own


def write_exact(path: Path, exact: Path) -> Path:
    """Write a copy of a model with float32 instead of float16 and return its path; ``path`` if it has no float16."""
    model = onnx.load(path)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    targets = [item for node in casts for item in node.attribute if item.name == "to" and item.i == _HALF]
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == _HALF]
    if not targets and not halves:
        return path
    for target in targets:
        target.i = _FLOAT
    for tensor in halves:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        )
    onnx.save(model, exact)
    return exact


def cut(path: Path, blocks: int, folder: Path) -> tuple[CutBlock, ...]:
    """Cut a graph between torch modules and write the pieces.

    Args:
        blocks: each block has at most 1/blocks of the multiply-adds, unless a single module has more.
        folder: folder for the files.

    Raises:
        RuntimeFault: the file is not an ONNX model, or the shapes between its nodes cannot be inferred.
    """
    work: dict[str, int] = {}
    for op in costs(path):
        work[op.module] = work.get(op.module, 0) + op.macs
    with raised_as(RuntimeFault, f"{path.name} cannot be cut into blocks", UNSHAPED, then="; export it again"):
        whole = Whole.of(onnx.shape_inference.infer_shapes(_in_order(path)), path.parent)
        parts = plan(whole.graph, own_nodes(whole.graph, whole.types), work, sum(work.values()) // blocks)
        pieces = _gathered(whole, parts)
        return tuple(_written(whole, pieces, number, name, folder) for number, name in enumerate(titles(parts)))


def _in_order(path: Path) -> onnx.ModelProto:
    """Read a graph and sort its nodes topologically; onnxruntime's quantizer appends its nodes at the end."""
    model = ir.from_proto(read_unfused(path))
    model.graph.sort()
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


@dataclass
class _Piece:
    """A block under construction; dicts are used as ordered sets.

    Attributes:
        others: nodes that belong to other blocks.
        nodes: nodes of this block, each after the nodes that it reads.
        inputs: values that are computed outside.
    """

    whole: Whole
    part: Part
    others: frozenset[int]
    nodes: dict[int, None] = field(default_factory=dict)
    inputs: dict[str, None] = field(default_factory=dict)

    def take(self, number: int) -> None:
        """Add a node and what it reads."""
        if number in self.nodes:
            return
        for name in self.whole.graph.node[number].input:
            maker = self.whole.made_by.get(name)
            if maker is not None and maker not in self.others:
                self.take(maker)
            elif name and name not in self.whole.constants:
                self.inputs[name] = None
        self.nodes[number] = None

    @property
    def made(self) -> set[str]:
        """Return the values that only this block computes."""
        return {name for node in self.part.nodes for name in self.whole.graph.node[node].output}


def _gathered(whole: Whole, parts: Sequence[Part]) -> list[_Piece]:
    every = {node for part in parts for node in part.nodes}
    pieces = [_Piece(whole, part, frozenset(every - set(part.nodes))) for part in parts]
    for piece in pieces:
        for node in piece.part.nodes:
            piece.take(node)
    return pieces


def _written(whole: Whole, pieces: Sequence[_Piece], number: int, title: str, folder: Path) -> CutBlock:
    """Write one block; its outputs are the values that later blocks or the graph's outputs need."""
    piece = pieces[number]
    read = [name for later in pieces[number + 1 :] for name in later.inputs]
    wanted = [name for name in dict.fromkeys(read) if name in piece.made]
    last = [info.name for info in whole.graph.output if whole.unmarked(info.name) in piece.made]
    # A quantized value is output after its pair, as its readers use it.
    leaving = {name: whole.marked(name) for name in wanted} | {name: name for name in last}
    for name in leaving.values():
        piece.take(whole.made_by[name])
    file, exact = folder / f"{number:03}.onnx", folder / f"{number:03}.exact.onnx"
    write_piece(whole, list(piece.nodes), list(piece.inputs), leaving, file)
    return CutBlock(str(file), str(write_exact(file, exact)), title, tuple(piece.inputs), tuple(leaving))
