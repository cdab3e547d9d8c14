"""Execute a saved asset with Apple's Core AI runtime, on the CPU."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import RuntimeFault, UsageError, one_line
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets.coreai.bindings import VENDOR_ERRORS, AIModelAsset, read_program
from md_export.targets.inputs import check_inputs

_DTYPES: Final = ("float32", "int32")


class CoreAIRunner:
    """A loaded model with checked inputs. The runtime's functions are coroutines; a loop of its own drives them."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._loop = asyncio.new_event_loop()
        stack = AsyncExitStack()
        weakref.finalize(self, _close, self._loop, stack)
        asset = AIModelAsset.load(path)
        model = self._loop.run_until_complete(stack.enter_async_context(asset.executable()))
        self._function: Any = model.load_function("main")
        shape = self._function.desc
        self.inputs = tuple(self._spec(name, shape.input_descriptor(name)) for name in shape.input_names)
        self.outputs = tuple(self._spec(name, shape.output_descriptor(name)) for name in shape.output_names)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once.

        Raises:
            RuntimeFault: an input is missing, unknown, or of another shape or dtype; the runtime failed.
        """
        from coreai.runtime import NDArray

        check_inputs(self._name, self.inputs, inputs)
        given = {name: NDArray(np.array(value, order="C")) for name, value in inputs.items()}
        try:
            made = self._loop.run_until_complete(self._function(given))
        except VENDOR_ERRORS as error:
            raise RuntimeFault(f"{self._name}: the Core AI runtime failed: {one_line(error)}") from error
        return {spec.name: np.array(made[spec.name].numpy()) for spec in self.outputs}

    def _spec(self, name: str, found: Any) -> TensorSpec:
        if None in found.shape:
            raise RuntimeFault(f"{self._name}: {name} has no fixed shape; artifacts have")
        return TensorSpec(name, tuple(found.shape), str(found.dtype))


def load(path: Path, runtime: str | None = None) -> CoreAIRunner:
    """Open an ``.aimodel`` folder.

    Raises:
        RuntimeFault: the runtime refuses it.
        UsageError: another runtime is asked for.
    """
    if runtime is not None:
        raise UsageError(f"{path.name} runs in Apple's Core AI runtime only; leave out the runtime {runtime!r}")
    read_program(path)
    try:
        return CoreAIRunner(path)
    except VENDOR_ERRORS as error:
        raise RuntimeFault(
            f"{path.name} is no asset that the Core AI runtime can run; export it again: {one_line(error)}"
        ) from error


def _close(loop: asyncio.AbstractEventLoop, stack: AsyncExitStack) -> None:
    loop.run_until_complete(stack.aclose())
    loop.close()
