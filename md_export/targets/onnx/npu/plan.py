"""Plan the cuts of a graph into blocks: between torch modules, so that each block has at most a share of the work.

    down_blocks.0.resnets.0, down_blocks.0.downsamplers.0, down_blocks.1.attentions.0, …

A container of modules that is small enough is one block; a larger one is cut between its parts, recursively.
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
    """Consecutive nodes in the order of execution.

    Attributes:
        nodes: numbers of the nodes in the graph, without those that are copied to each reader: see :func:`own_nodes`.
        modules: paths of the torch modules that they compute, in order.
        work: number of multiply-adds.
    """

    nodes: tuple[int, ...]
    modules: tuple[str, ...]
    work: int

    def __add__(self, other: Part) -> Part:
        """Join with ``other``, which must follow."""
        return Part(self.nodes + other.nodes, self.modules + other.modules, self.work + other.work)


def titles(parts: Sequence[Part]) -> list[str]:
    """Return the title of each part: its module if it is complete, else the first and the last of its modules."""
    sizes = Counter(name for part in parts for path in part.modules for name in _above(path))
    return [_title(part, sizes) for part in parts]


def _title(part: Part, sizes: Mapping[str, int]) -> str:
    paths = [path for path in part.modules if path]
    if not paths:
        return "the component itself"
    shared = _shared([path.split(".") for path in paths])
    if shared and (len(set(paths)) == 1 or sizes[".".join(shared)] == len(paths)):
        return ".".join(shared)
    # Two levels, because one may be only the number of a module in a list.
    ends = [".".join(path.split(".")[: len(shared) + 2]) for path in (paths[0], paths[-1])]
    return f"{ends[0]} to {ends[1]}" if ends[0] != ends[1] else f"part of {ends[0]}"


def _shared(paths: Sequence[list[str]]) -> list[str]:
    """Return the common prefix of all paths; it is that of the first and the last in sorted order."""
    least, most = min(paths), max(paths)
    return least[: next((depth for depth, name in enumerate(least) if most[depth : depth + 1] != [name]), len(least))]


def _above(path: str) -> list[str]:
    """Return a path and the paths of all containing modules."""
    names = path.split(".")
    return [".".join(names[:depth]) for depth in range(1, len(names) + 1)]


def own_nodes(graph: onnx.GraphProto, types: Mapping[str, int]) -> list[int]:
    """Return the numbers of the nodes that belong to exactly one block.

    Other nodes are copied to each block that reads them: quantizers and dequantizers, computations on constants, and
    values that are not float, because blocks exchange only floats.
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
        most: limit for a part, unless a single module has more.
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
    """Group neighbours with the same path down to ``depth``; nodes above that depth join the group before them."""
    keys: list[tuple[str, ...]] = []
    for part in parts:
        names = _names(part)
        keys.append(names[: depth + 1] if len(names) > depth or not keys else keys[-1])
    return [[part for part, _ in run] for _, run in groupby(zip(parts, keys, strict=True), key=lambda pair: pair[1])]


def _packed(parts: Iterator[Part], most: int) -> Iterator[Part]:
    """Join neighbours while they are small enough; parts without multiply-adds join a neighbour."""
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
