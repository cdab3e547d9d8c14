"""Apple's compiler bindings behind one door: what they offer has no public name yet (coreai-core 1.0.0b3).

A program is MLIR: a graph ``main`` of operations, and one private graph for each composite (a norm), which ``main``
invokes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

# First: the dialects import it, and it them.
import coreai.authoring
from coreai._compiler import ir
from coreai._compiler._mlir_libs._coreaiIR._bindings.compiler import copy_constant_value_to_array
from coreai._compiler._mlir_libs._coreaiIR._bindings.mlir import (
    get_source_info,
    set_block_arg_location,
    set_op_location,
)
from coreai._compiler.dialects import coreai as dialect

from md_export.errors import ConversionError, RuntimeFault, one_line

# What torch.export, the converter and the bindings raise on what they cannot take.
VENDOR_ERRORS: Final = (
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    OSError,
)
AIModelAsset: Any = coreai.authoring.AIModelAsset
_PROGRAM, _HASH = "main.mlirb", "main.hash"
_MAGIC: Final = b"ML\xefR"
_PREFIXES: Final = ("coreai.decomposable.", "coreai.")

__all__ = [
    "VENDOR_ERRORS",
    "AIModelAsset",
    "callee_of",
    "converting",
    "copy_constant_value_to_array",
    "dialect",
    "get_source_info",
    "graphs",
    "ir",
    "kind_of",
    "main_graph",
    "name_of",
    "operations",
    "read_program",
    "set_block_arg_location",
    "set_op_location",
]


@contextlib.contextmanager
def converting(component: str, stage: str) -> Iterator[None]:
    """Run one stage of a conversion without the vendor's chatter.

    Raises:
        ConversionError: the vendor's code failed; the message names component and stage.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except VENDOR_ERRORS as error:
            raise ConversionError(
                f"{component}: Core AI {stage} failed: {one_line(error)}; rewrite the operation named here, "
                "or leave the component out with --component"
            ) from error


def read_program(path: Path) -> Any:
    """The program of a saved asset, in a context of its own.

    Raises:
        RuntimeFault: it is no such asset, or was altered: Apple's parser ends the process where bytes are wrong.
    """
    try:
        _check_hash(path)
        return AIModelAsset.load(path).program
    except VENDOR_ERRORS as error:
        raise RuntimeFault(f"{path.name} is no Core AI asset; export it again: {one_line(error)}") from error


def _check_hash(path: Path) -> None:
    """ValueError where the program is not the one that was saved."""
    program, hashed = path / _PROGRAM, path / _HASH
    if not program.is_file() or not hashed.is_file():
        raise ValueError(f"it holds no {_PROGRAM} with its {_HASH}")
    with program.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{_PROGRAM} is no bytecode")
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").digest()
    if found != hashed.read_bytes():
        raise ValueError(f"{_PROGRAM} is not what {_HASH} says")


def graphs(program: Any) -> list[Any]:
    """``main`` and what it invokes, in the program's order."""
    found = [op.operation for op in program._module._mlir_module.body.operations]
    return [op for op in found if op.name == "coreai.graph"]


def name_of(graph: Any) -> str:
    """Of a graph."""
    return str(ir.StringAttr(graph.attributes["sym_name"]).value)


def main_graph(program: Any) -> Any:
    """The graph that is executed.

    Raises:
        RuntimeFault: the program has none of that name.
    """
    for graph in graphs(program):
        if name_of(graph) == "main":
            return graph
    raise RuntimeFault("the Core AI program has no function 'main'; export it again")


def operations(program: Any) -> list[Any]:
    """Of ``main``, in order of execution, its output last."""
    return [op.operation for op in main_graph(program).regions[0].blocks[0].operations]


def kind_of(op: Any) -> str:
    """The format's name of an operation; of an invocation the composite's, such as ``group_norm``."""
    if op.name == "coreai.invoke":
        return callee_of(op).rpartition("_")[0]
    prefix = next((prefix for prefix in _PREFIXES if op.name.startswith(prefix)), "")
    return str(op.name).removeprefix(prefix)


def callee_of(op: Any) -> str:
    """Name of the graph that an invocation calls."""
    return str(op.attributes["callee"]).partition("@")[2].partition(">")[0].strip()
