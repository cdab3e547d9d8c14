"""Execute a saved package: with our runtime on any machine, with Core ML on a Mac."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export import mil
from md_export.errors import ArtifactError, RuntimeFault, UsageError, raised_as
from md_export.spec.tensors import Array, Arrays, TensorSpec, check_arrays
from md_export.targets.coreml.hazard import OverflowWatch
from md_export.targets.coreml.package import feature_specs, read_spec
from md_export.targets.coreml.vendor import VENDOR_ERRORS, ct, quiet

RUNTIMES: Final = ("mil", "coreml")
Predict = Callable[[dict[str, Array]], Any]


class PackageRunner:
    """Runner of a package that checks names, shapes and dtypes of inputs and outputs."""

    def __init__(
        self,
        name: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        predict: Predict,
        watch: OverflowWatch | None = None,
    ) -> None:
        self._name = name
        self.inputs = inputs
        self.outputs = outputs
        self._predict = predict
        self._watch = watch

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once; inputs and outputs are NCHW, float32 and int32 in every precision.

        Raises:
            RuntimeFault: the inputs are not the model's, the runtime fails, or its outputs are not the model's.
        """
        check_arrays(self._name, self.inputs, inputs)
        outputs = {name: np.asarray(array) for name, array in self._predict(dict(inputs)).items()}
        check_arrays(self._name, self.outputs, outputs, "output")
        return outputs

    def hazards(self) -> tuple[str, ...]:
        """Return the operations with float16 overflows in the runs so far; empty for Core ML.

        Raises:
            RuntimeFault: our runtime failed when it repeated such a run in float32.
        """
        return self._watch.hazards() if self._watch else ()


def load(path: Path, runtime: str | None = None) -> PackageRunner:
    """Open a saved package.

    Args:
        path: the ``.mlpackage`` folder.
        runtime: ``mil`` or None: our runtime, which stores each value in the type that the program declares;
            ``coreml``: Apple's, on a Mac.

    Raises:
        RuntimeFault: the package cannot be read, or ``coreml`` was requested without a Mac.
        UsageError: the runtime is unknown.
    """
    try:
        description = read_spec(path).description
        inputs, outputs = feature_specs(description.input), feature_specs(description.output)
    except ArtifactError as error:
        raise RuntimeFault(str(error)) from error
    openers: dict[str, Callable[[Path], tuple[Predict, OverflowWatch | None]]] = {
        "mil": _open_mil,
        "coreml": _open_coreml,
    }
    chosen = runtime or "mil"
    if chosen not in openers:
        raise UsageError(f"unknown Core ML runtime {chosen!r}; use one of {', '.join(RUNTIMES)}")
    predict, watch = openers[chosen](path)
    return PackageRunner(path.name, inputs, outputs, predict, watch)


def _open_mil(path: Path) -> tuple[Predict, OverflowWatch]:
    program = mil.load(path, precision="storage")
    watch = OverflowWatch(path, program.graph)
    return lambda inputs: program.predict(inputs, observer=watch.begin(inputs)), watch


def _open_coreml(path: Path) -> tuple[Predict, None]:
    if sys.platform != "darwin":
        raise RuntimeFault("Core ML runs only on a Mac; use --runtime mil here")
    with raised_as(RuntimeFault, f"{path}: Core ML refuses the package", VENDOR_ERRORS), quiet():
        model = ct.models.MLModel(str(path))
    return lambda inputs: _predict_coreml(model, inputs), None


def _predict_coreml(model: Any, inputs: dict[str, Array]) -> Any:
    with raised_as(RuntimeFault, "Core ML failed", VENDOR_ERRORS):
        return model.predict(inputs)


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute with our runtime, each value stored in the type that the program declares; return float32 copies.

    Raises:
        RuntimeFault: the program does not run on these inputs.
    """
    found = mil.load(path).predict(dict(inputs), keep=names)
    return {name: found[name].astype(np.float32) for name in names}
