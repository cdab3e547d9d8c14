"""Execute a saved .tflite file: by LiteRT's interpreter with XNNPACK, or by another runtime of the same format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from md_export.errors import RuntimeFault, UsageError
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets.tflite.runtimes import OWN, RUNTIMES
from md_export.targets.tflite.runtimes import THREADS as THREADS


class TfliteRunner:
    """One loaded file with exactly one signature; inputs and outputs go by the signature's names."""

    def __init__(self, path: Path, interpreter: Any, signature: str) -> None:
        self._path = path
        # The signature runner does not keep its interpreter alive.
        self._interpreter = interpreter
        self._signature = interpreter.get_signature_runner(signature)
        self.inputs = _specs(self._signature.get_input_details())
        self.outputs = _specs(self._signature.get_output_details())

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once.

        Args:
            inputs: every input of :attr:`inputs` by name, in its shape and dtype.

        Returns:
            new arrays, one per name of :attr:`outputs`.

        Raises:
            RuntimeFault: a name, shape or dtype is not the file's, or an op failed.
        """
        self._check(inputs)
        try:
            outputs = self._signature(**{name: np.ascontiguousarray(value) for name, value in inputs.items()})
        except (RuntimeError, ValueError) as error:
            raise RuntimeFault(f"{self._path.name}: an op failed: {error}") from error
        return {spec.name: outputs[spec.name] for spec in self.outputs}

    def _check(self, inputs: Arrays) -> None:
        wanted = {spec.name: spec for spec in self.inputs}
        if set(inputs) != set(wanted):
            raise RuntimeFault(f"{self._path.name} takes the inputs {sorted(wanted)}, not {sorted(inputs)}")
        for name, spec in wanted.items():
            shape, dtype = tuple(inputs[name].shape), str(inputs[name].dtype)
            if (shape, dtype) != (spec.shape, spec.dtype):
                raise RuntimeFault(
                    f"{self._path.name}: input {name} must be {spec.dtype} {list(spec.shape)}, "
                    f"not {dtype} {list(shape)}"
                )


def load(path: Path, runtime: str | None = None) -> TfliteRunner:
    """Open a .tflite file on the CPU; the runtime verifies its tables before it uses them.

    Args:
        path: the file.
        runtime: a name from RUNTIMES; by default LiteRT with XNNPACK.

    Raises:
        RuntimeFault: the file is missing or damaged, has no single signature, or an op is unknown.
        MissingExtraError: the runtime is not installed.
        UsageError: there is no such runtime.
    """
    chosen = RUNTIMES.get(runtime or OWN)
    if chosen is None:
        raise UsageError(f"{path.name} runs in {', '.join(RUNTIMES)}, not in {runtime!r}")
    try:
        interpreter = chosen.interpreter(path)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise RuntimeFault(f"{path.name} cannot be loaded by {chosen.name}: {error}; export it again") from error
    signatures = list(interpreter.get_signature_list())
    if len(signatures) != 1:
        raise RuntimeFault(f"{path.name} has {len(signatures)} signatures; exactly one can be run")
    return TfliteRunner(path, interpreter, signatures[0])


def _specs(details: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    items: Iterable[tuple[str, Mapping[str, Any]]] = sorted(details.items())
    return tuple(
        TensorSpec(name, tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"]).name)
        for name, detail in items
    )
