"""What happens inside a saved package: its operations by torch module, and the values between them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from md_export.errors import ArtifactError, RuntimeFault
from md_export.spec.tensors import Array, Arrays
from md_export.targets.contract import Step
from md_export.targets.coreml import mil
from md_export.targets.coreml.modules import read_modules
from md_export.targets.coreml.package import read_spec


def steps(path: Path) -> tuple[Step, ...]:
    """Every operation with the torch module that the package tells.

    Raises:
        RuntimeFault: no such package, or a program that our runtime does not know.
    """
    try:
        modules = read_modules(read_spec(path))
    except ArtifactError as error:
        raise RuntimeFault(str(error)) from error
    operations = mil.load(path).graph.ops
    return tuple(
        Step(op.kind, (modules.get(op.outputs[0].name, ""),), tuple(op.refs), tuple(out.name for out in op.outputs))
        for op in operations
        if op.outputs
    )


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute with our own runtime, each value stored in the type that the program declares; float32 copies.

    Raises:
        RuntimeFault: the program does not run on these inputs.
    """
    found = mil.load(path).predict(dict(inputs), keep=names)
    return {name: found[name].astype(np.float32) for name in names}
