"""Where a graph is cut into blocks: between torch modules, so that each block has a share of the work at most.

    down_blocks.0.resnets.0, down_blocks.0.downsamplers.0, down_blocks.1.attentions.0, …

A container of modules that is small enough is one block; a larger one is cut where its parts meet, and so are those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from operator import add
from typing import Final

import onnx

from md_export.targets.onnx.clean import module_path

_MARKING: Final = ("QuantizeLinear", "DequantizeLinear")
_FLOATS: Final = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Part:
    """Neighbours in the order of execution.

    Attributes:
        nodes: their numbers in the graph; without those that every reader takes along, see :func:`own_nodes`.
        modules: paths of the torch modules that they compute, in order.
        work: multiply-adds.
    """

    nodes: tuple[int, ...]
    modules: tuple[str, ...]
    work: int

    def __add__(self, other: Part) -> Part:
        """Both, where ``other`` follows."""
        return Part(self.nodes + other.nodes, self.modules + other.modules, self.work + other.work)


def titles(parts: Sequence[Part]) -> list[str]:
    """Return the title of each part: the module that it is all of, or the first and the last of its modules."""
    sizes = Counter(name for part in parts for path in part.modules for name in _above(path))
    return [_title(part, sizes) for part in parts]


def _title(part: Part, sizes: Mapping[str, int]) -> str:
    paths = [path for path in part.modules if path]
    if not paths:
        return "the component itself"
    shared = _shared([path.split(".") for path in paths])
    if shared and (len(set(paths)) == 1 or sizes[".".join(shared)] == len(paths)):
        return ".".join(shared)
    # Two levels: one is the number of a module in a list.
    ends = [".".join(path.split(".")[: len(shared) + 2]) for path in (paths[0], paths[-1])]
    return f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"part of {ends[0]}"


def _shared(paths: Sequence[list[str]]) -> list[str]:
    """Names that all begin with: the first and the last in order tell."""
    least, most = min(paths), max(paths)
    return least[: next((depth for depth, name in enumerate(least) if most[depth : depth + 1] != [name]), len(least))]


def _above(path: str) -> list[str]:
    """A path and all that it lies in."""
    names = path.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names) + 1)]


def own_nodes(graph: onnx.GraphProto, types: Mapping[str, int]) -> list[int]:
    """Numbers of the nodes that belong to one block.

    Others go with each block that reads them: what turns floats into integers and back, what is computed from
    constants, and what is not a float, which no block takes or gives.
    """
    constants = {tensor.name for tensor in graph.initializer}
    own = []
    for number, node in enumerate(graph.node):
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
        elif node.op_type not in _MARKING and all(types.get(name) in _FLOATS for name in node.output if name):
            own.append(number)
    return own


def plan(graph: onnx.GraphProto, own: Sequence[int], work: Mapping[str, int], most: int) -> list[Part]:
    """Cut the nodes ``own`` into parts.

    Args:
        work: multiply-adds of each module.
        most: of a part; more only where one module has more.
    """
    charged: set[str] = set()
    parts = []
    for number in own:
        module = module_path(graph.node[number].name)
        parts.append(Part((number,), (module,), 0 if module in charged else work.get(module, 0)))
        charged.add(module)
    return _divided(parts, 0, most)


def _divided(parts: Sequence[Part], depth: int, most: int) -> list[Part]:
    whole = reduce(add, parts)
    if whole.work <= most or all(len(_names(part)) <= depth for part in parts):
        return [whole]
    return list(_packed((piece for run in _runs(parts, depth) for piece in _divided(run, depth + 1, most)), most))


def _runs(parts: Sequence[Part], depth: int) -> list[list[Part]]:
    """Neighbours of the same path down to ``depth``; what lies above it goes with what is before it."""
    keys: list[tuple[str, ...]] = []
    for part in parts:
        names = _names(part)
        keys.append(names[: depth + 1] if len(names) > depth or not keys else keys[-1])
    return [[part for part, _ in run] for _, run in groupby(zip(parts, keys, strict=True), key=lambda pair: pair[1])]


def _packed(parts: Iterator[Part], most: int) -> Iterator[Part]:
    """Neighbours joined while they are small enough; what multiplies nothing goes with a neighbour."""
    held: Part | None = None
    for part in parts:
        if held is not None and held.work and part.work and held.work + part.work > most:
            yield held
            held = None
        held = part if held is None else held + part
    if held is not None:
        yield held


def _names(part: Part) -> tuple[str, ...]:
    return tuple(filter(None, part.modules[0].split(".")))
