"""The table of kernels against the op set that coremltools registers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from md_export.errors import RuntimeFault
from md_export.mil.bind import signature
from md_export.mil.graph import Declared, Op
from md_export.mil.table import TABLE, kernel_for

# Loops, lists, random numbers, recurrent cells, classifiers; conv_quantized is experimental and has no semantics.
OUT_OF_SCOPE = {
    "classify", "cond", "const", "_const_symbolic", "while_loop", "make_list", "list_length", "list_write", "list_read",
    "list_gather", "list_scatter", "gru", "lstm", "rnn", "random_bernoulli", "random_categorical", "random_normal",
    "random_uniform", "conv_quantized",
}  # fmt: skip


def _registry() -> dict[str, dict[Any, Any]]:
    import coremltools  # noqa: F401 -- fills the registry
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    ops: dict[str, dict[Any, Any]] = SSAOpRegistry.core_ops
    return ops


def _op(kind: str) -> Op:
    return Op(kind, {}, (Declared("y", None),))  # type: ignore[arg-type]


def _opset(version: Any) -> int:
    return max(int(version.value) - 1, 5)


def test_every_op_in_scope_has_a_kernel_in_every_opset_that_has_it() -> None:
    missing = []
    for kind, versions in _registry().items():
        for version in versions:
            if kind in OUT_OF_SCOPE or _opset(version) > max(TABLE):
                continue
            try:
                kernel_for(_op(kind), _opset(version))
            except RuntimeFault:
                missing.append((kind, version.name))
    assert not missing


def test_every_kernel_takes_the_ops_own_arguments() -> None:
    """Names and optionality agree with coremltools' op definitions of the same opset."""
    wrong = []
    for kind, versions in _registry().items():
        if kind in OUT_OF_SCOPE:
            continue
        for version, definition in versions.items():
            spec = definition.input_spec.input_types
            takes = signature(kernel_for(_op(kind), _opset(version)))
            needed = {name for name, item in spec.items() if not item.optional}
            if not set(spec) <= set(takes.forms) or not takes.required <= needed:
                wrong.append((kind, version.name, sorted(set(spec) - set(takes.forms) | takes.required - needed)))
    assert not wrong


def test_only_known_ops_are_in_the_table() -> None:
    known = set(_registry()) | {"write_state"}  # coremltools writes this one without registering it
    assert {kind for ops in TABLE.values() for kind in ops} <= known


def test_redefined_ops_differ_by_opset() -> None:
    x = torch.zeros(2, 50)
    with pytest.raises(IndexError):
        kernel_for(_op("reshape"), 6)(x, (1, 0, -1, 0))
    assert kernel_for(_op("reshape"), 7)(x, (1, 0, -1, 0)).shape == (1, 1, 2, 50)
    assert kernel_for(_op("relu"), 8) is kernel_for(_op("relu"), 5)


@pytest.mark.parametrize(
    ("kind", "opset"), [("resize", 6), ("constexpr_lut_to_dense", 5), ("read_state", 7), ("lstm", 8)]
)
def test_what_an_opset_lacks_is_refused(kind: str, opset: int) -> None:
    with pytest.raises(RuntimeFault, match=f"{kind} → y: this runtime has no op {kind} of opset CoreML{opset}"):
        kernel_for(_op(kind), opset)


def test_every_kernel_is_documented() -> None:
    kernels = [kernel for ops in TABLE.values() for kernel in ops.values()]
    assert all(inspect.getdoc(kernel) for kernel in kernels)
