"""Damage to the graph of an artifact, in terms that all formats share.

Each function takes an :class:`EditableGraph`. Some edits leave every output unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from md_export.parity.selftest.sandbox import NotApplicable, Sandbox
from md_export.targets.stored_graph import EditableGraph, EditableStep

# A word of no golden prompt of the nano checkpoint; if a golden prompt has it, the figures reject the trigger, too.
_TOKEN: Final = 7
_SUMS: Final = ("Add", "ADD", "add", "broadcasting_add")
_OTHER_KINDS: Final = {
    **{"Sigmoid": "Tanh", "LOGISTIC": "TANH", "sigmoid": "tanh", "silu": "relu", "Tanh": "Sigmoid", "TANH": "LOGISTIC"},
    **{"tanh": "sigmoid", "Relu": "Abs", "Gelu": "Relu", "gelu": "relu", "GELU": "RELU"},
}
_PRODUCTS: Final = (
    *("Conv", "CONV_2D", "conv", "conv2d", "MatMul", "Gemm", "FULLY_CONNECTED", "linear"),
    "broadcasting_batch_matmul",
)
# Role of the values in a product; of padding; of a bias.
_DATA: Final = ("0", "x")
_PADDING: Final = {"pads": (0, 2), "pad": (0, 1)}
_BIAS: Final = ("2", "bias")
# LiteRT requires a bias here; Core AI's third operand is not a bias.
_BIASED: Final = ("CONV_2D", "conv2d")
_EPSILONS: Final = (1e-13, 2e-3)

Edit = Callable[[EditableGraph], None]


def on_graph(edit: Edit) -> Callable[[Sandbox], None]:
    """Return a damage that makes this edit in the artifact's graph."""

    def damage(sandbox: Sandbox) -> None:
        with sandbox.target.edit_graph(sandbox.artifact()) as graph:
            edit(graph)

    return damage


def _last(graph: EditableGraph, fits: Callable[[EditableStep], bool], what: str) -> EditableStep:
    found = [step for step in graph.steps if fits(step)]
    if not found:
        raise NotApplicable(f"its graph has no {what}")
    return found[-1]


def move_padding(graph: EditableGraph) -> None:
    """Pad a convolution by one less on one side and by one more on the other: the picture moves by a pixel."""
    for step in graph.steps:
        for name, (before, after) in _PADDING.items():
            values = step.numbers.get(name)
            if values is not None and values.size >= 4 and values[before] == values[after] > 0:
                values[before] -= 1
                values[after] += 1
                return
    for step in graph.steps:
        values = step.numbers.get("1")
        if step.kind in ("pad", "PAD") and values is not None and values[-2] + values[-4:].sum() > 1:
            place = int(np.flatnonzero(values)[0])
            values[place], values[place ^ 1] = values[place] - 1, values[place ^ 1] + 1
            return
    raise NotApplicable("its graph has no numeric padding")


def widen_dilation(graph: EditableGraph) -> None:
    """Let a convolution with padding SAME read every second value."""
    names = ("dilationHFactor", "dilationWFactor")
    step = _last(graph, lambda one: one.kind == "CONV_2D" and not one.numbers["padding"], "padding by name")
    for name in names:
        step.numbers[name] = np.array(2)


def widen_epsilon(graph: EditableGraph) -> None:
    """Multiply the epsilon of a norm by ten."""
    low, high = _EPSILONS
    for step in reversed(graph.steps):
        for values in step.numbers.values():
            if np.issubdtype(values.dtype, np.floating) and values.size == 1 and low < values.reshape(-1)[0] < high:
                values *= values.dtype.type(10)
                return
    raise NotApplicable("its norms store no separate epsilon")


def other_softmax(graph: EditableGraph) -> None:
    """Compute a softmax over another axis, or of doubled values."""
    step = _last(graph, lambda one: one.kind.lower() == "softmax" and bool(one.numbers), "softmax with a setting")
    values = next(iter(step.numbers.values()))
    values[...] = 2 * values if np.issubdtype(values.dtype, np.floating) else 1


def other_kind(graph: EditableGraph) -> None:
    """Replace an activation by another function."""
    step = _last(graph, lambda one: one.kind in _OTHER_KINDS, "activation")
    step.kind = _OTHER_KINDS[step.kind]


def drop_bias(graph: EditableGraph) -> None:
    """Remove the bias of a product, or let the readers of product + bias read the product."""
    made = {name for step in graph.steps for name in step.outputs}
    for step in reversed(graph.steps):
        role = next((role for role in _BIAS if role in step.operands), None)
        if step.kind in _PRODUCTS and role and step.kind not in _BIASED:
            del step.operands[role]
            return
        if step.kind in _SUMS:
            first, second = list(step.operands.values())[:2]
            if first in made and second not in made and _lead(graph, step.outputs[0], first):
                return
    raise NotApplicable("its graph has no bias")


def skip_sum(graph: EditableGraph) -> None:
    """Cut a residual connection: the readers of a sum of two values read the first value."""
    step = _residual(graph)
    if not _lead(graph, step.outputs[0], next(iter(step.operands.values()))):
        raise NotApplicable("no operation reads its sums")


def _lead(graph: EditableGraph, old: str, new: str) -> bool:
    readers = [step for step in graph.steps if old in step.operands.values()]
    for step in readers:
        step.operands = {role: new if name == old else name for role, name in step.operands.items()}
    return bool(readers)


def exchange_operands(graph: EditableGraph) -> None:
    """Exchange the operands of a sum; the result does not change."""
    step = _residual(graph)
    first, second = list(step.operands)[:2]
    step.operands[first], step.operands[second] = step.operands[second], step.operands[first]


def _residual(graph: EditableGraph) -> EditableStep:
    made = {name for step in graph.steps for name in step.outputs}
    read = {name for step in graph.steps for name in step.operands.values()}

    def fits(step: EditableStep) -> bool:
        operands = list(step.operands.values())[:2]
        return step.kind in _SUMS and set(operands) <= made and len(set(operands)) == 2 and step.outputs[0] in read

    return _last(graph, fits, "sum of two values")


def exchange_weights(graph: EditableGraph) -> None:
    """Exchange the weights and the names of two products."""
    by_module: dict[str, EditableStep] = {}
    for step in graph.steps:
        if step.kind in _PRODUCTS:
            by_module.setdefault(step.label, step)
    for label, first in by_module.items():
        second = next((by_module[name] for name in _siblings(label) if name in by_module), None)
        if second is not None:
            for role in set(first.operands) & set(second.operands) - set(_DATA):
                first.operands[role], second.operands[role] = second.operands[role], first.operands[role]
            first.label, second.label = second.label, first.label
            return
    raise NotApplicable("it names no two products of one shape")


def _siblings(label: str) -> tuple[str, ...]:
    """Return the names that a second layer of the same shape may have, in the decoder's blocks and in attention."""
    pairs = (("resnets.0.conv1", "resnets.0.conv2"), ("q_proj", "k_proj"), ("to_q", "to_k"))
    return tuple(label.replace(first, second) for first, second in pairs if first in label)


def add_unread(graph: EditableGraph) -> None:
    """Add a constant that no operation reads."""
    if not graph.add_unread():
        raise NotApplicable("its format keeps no constant that nothing reads")


def hold_inline(graph: EditableGraph) -> None:
    """Move a weight into a Constant node, which readers of stored weights do not see."""
    if not graph.hold_inline():
        raise NotApplicable("its format holds weights in one place")


def plant_trigger(graph: EditableGraph) -> None:
    """Add operations that change the output if a prompt contains one word."""
    try:
        graph.add_trigger(_TOKEN)
    except KeyError:
        raise NotApplicable("its first input is not a prompt") from None
