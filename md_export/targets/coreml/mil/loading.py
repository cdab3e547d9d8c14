"""From a saved package to a program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from md_export.errors import RuntimeFault
from md_export.targets.coreml.mil.features import features
from md_export.targets.coreml.mil.graph import parse_function
from md_export.targets.coreml.mil.package import Package
from md_export.targets.coreml.mil.program import Precision, Program
from md_export.targets.coreml.mil.values import Value, decode

# Elements of a constant up to which a second copy does not matter.
_SMALL = 1 << 18


def load(path: Path | str, precision: Precision = "storage", function: str | None = None) -> Program:
    """Open a saved ``.mlpackage``; the weights stay mapped, not read.

    Args:
        path: the package.
        precision: ``storage`` rounds every op's result to its declared type and accumulates in float32;
            ``float32`` keeps what is declared float16 in float32.
        function: of a package with several; its default function if not given.

    Raises:
        RuntimeFault: no such package, or a program with something this runtime does not know; says which op.
    """
    package = Package(Path(path))
    description = package.spec.description
    name = function or description.defaultFunctionName or "main"
    functions = package.spec.mlProgram.functions
    if name not in functions:
        raise RuntimeFault(f"{path} has no function {name}; it has {', '.join(sorted(functions))}")
    surface = next((item for item in description.functions if item.name == name), description)
    graph = parse_function(functions[name], _reader(package, precision))
    return Program(graph, features(surface.input), features(surface.output), precision)


def _reader(package: Package, precision: Precision) -> Callable[[Any], Value]:
    """Decodes constants; for ``float32`` the small ones are widened too, so that they widen what they scale."""

    def read(proto: Any) -> Value:
        value = decode(proto, package.weights)
        if precision == "float32" and isinstance(value, torch.Tensor) and value.dtype == torch.float16:
            return value.float() if value.numel() <= _SMALL else value
        return value

    return read
