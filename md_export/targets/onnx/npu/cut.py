"""A saved graph as a row of blocks, each a file of its own that takes and gives float32.

    Y → QuantizeLinear → DequantizeLinear → Y'        between two blocks: both have the pair, the first gives Y'
    Y in float16                                      the first gives Cast(Y), the second takes Cast(Y)

so that what one block gives is what the next takes, and each computes what the whole graph computes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from md_export.errors import RuntimeFault, one_line
from md_export.targets.onnx.costs import costs
from md_export.targets.onnx.describe import MALFORMED, read_unfused
from md_export.targets.onnx.npu.piece import Whole, write_exact, write_piece
from md_export.targets.onnx.npu.plan import Part, own_nodes, plan, titles


@dataclass(frozen=True)
class CutBlock:
    """One block.

    Attributes:
        file: its graph.
        exact: the same in float32, for the CPU; may be the same file.
        title: the torch modules that it computes.
        inputs, outputs: values of the whole graph, by their names there.
    """

    file: str
    exact: str
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut(path: Path, blocks: int, folder: Path) -> tuple[CutBlock, ...]:
    """Cut a graph where torch modules meet and write the pieces.

    Args:
        blocks: each has so small a share of the multiply-adds at most, where no single module has more.
        folder: where the files go.

    Raises:
        RuntimeFault: the file is no ONNX model, or the shapes between its nodes cannot be told.
    """
    work: dict[str, int] = {}
    for op in costs(path):
        work[op.module] = work.get(op.module, 0) + op.macs
    try:
        whole = Whole.of(onnx.shape_inference.infer_shapes(_in_order(path)), path.parent)
        parts = plan(whole.graph, own_nodes(whole.graph, whole.types), work, sum(work.values()) // blocks)
        pieces = _gathered(whole, parts)
        return tuple(_written(whole, pieces, number, name, folder) for number, name in enumerate(titles(parts)))
    except (*MALFORMED, onnx.shape_inference.InferenceError) as error:
        raise RuntimeFault(f"{path.name} cannot be cut into blocks: {one_line(error)}; export it again") from error


def _in_order(path: Path) -> onnx.ModelProto:
    """The graph with each node after those that it reads; onnxruntime's quantizer puts its own at the end."""
    model = ir.from_proto(read_unfused(path))
    model.graph.sort()
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


@dataclass
class _Piece:
    """A block as it is gathered; dicts as sets that keep an order.

    Attributes:
        others: nodes that belong to other blocks.
        nodes: its own, after all that they read and that no other block has.
        inputs: values that come from outside.
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
        """Values that no other block computes."""
        return {name for node in self.part.nodes for name in self.whole.graph.node[node].output}


def _gathered(whole: Whole, parts: Sequence[Part]) -> list[_Piece]:
    every = {node for part in parts for node in part.nodes}
    pieces = [_Piece(whole, part, frozenset(every - set(part.nodes))) for part in parts]
    for piece in pieces:
        for node in piece.part.nodes:
            piece.take(node)
    return pieces


def _written(whole: Whole, pieces: Sequence[_Piece], number: int, title: str, folder: Path) -> CutBlock:
    """Write one, with all that later ones or the graph's user read of it."""
    piece = pieces[number]
    read = [name for later in pieces[number + 1 :] for name in later.inputs]
    wanted = [name for name in dict.fromkeys(read) if name in piece.made]
    last = [info.name for info in whole.graph.output if whole.unmarked(info.name) in piece.made]
    # A value that is marked leaves as its readers get it: through the pair.
    leaving = {name: whole.marked(name) for name in wanted} | {name: name for name in last}
    for name in leaving.values():
        piece.take(whole.made_by[name])
    file, exact = folder / f"{number:03}.onnx", folder / f"{number:03}.exact.onnx"
    write_piece(whole, list(piece.nodes), list(piece.inputs), leaving, file)
    return CutBlock(str(file), str(write_exact(file, exact)), title, tuple(piece.inputs), tuple(leaving))
