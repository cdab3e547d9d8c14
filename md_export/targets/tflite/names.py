"""Torch module paths as tensor names, so that an op of a .tflite file can be traced to its module.

litert_torch names a tensor after the classes of the modules around it and the last part of their
paths. Modules whose ``forward`` is not called (a level of the UNet, a ``ModuleList``) are missing there,
so ``up_blocks.0.resnets.0`` and ``up_blocks.1.resnets.0`` get the same name, and transformers' class
names enter the file. Within :func:`module_paths_as_names` the name is the exact path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

# Attribute under which the lowered wrapper holds the component.
COMPONENT: Final = "component"
# The exporter appends a counter to names that repeat and joins the names of fused ops; both after this.
END: Final = ";"
_ANONYMOUS: Final = "arith."


@contextmanager
def module_paths_as_names(root: str) -> Iterator[None]:
    """Make litert_torch name tensors ``<module path>;``, and ``root;`` where the path is empty."""
    from litert_torch.backend import debuginfo

    original = debuginfo.build_mlir_debuginfo

    def path_of(node: Any) -> str | None:
        stack = node.meta.get("nn_module_stack")
        if not stack:
            return None
        path, _ = list(stack.values())[-1]
        return (path.removeprefix(COMPONENT).removeprefix(".") or root) + END

    debuginfo.build_mlir_debuginfo = path_of
    try:
        yield
    finally:
        debuginfo.build_mlir_debuginfo = original


def module_of(weight: str, output: str) -> str:
    """The torch module to which a weighted op belongs, from its weight's and its output's tensor names.

    An op that was fused with its neighbours, or a constant that was shared, has the names of all of
    them: the weight's own module comes last. The exporter renames an embedding table.
    """
    paths = modules_in(output if weight.startswith(_ANONYMOUS) else weight)
    return paths[-1] if paths else output


def modules_in(tensor: str) -> list[str]:
    """Return the parts that a tensor's name joins: module paths, or a name that the exporter chose."""
    return [part for part in tensor.split(END) if part and not part.isdigit()]


def exactly(outputs: Iterable[str]) -> str:
    """A regular expression for ai_edge_quantizer's op scopes that finds these ops, one at least.

    A scope is the op's output tensor name followed by a semicolon.
    """
    return f"^(?:{'|'.join(sorted(re.escape(name) for name in outputs))}){END}$"
