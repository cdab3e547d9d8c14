"""Execute a saved asset with Apple's Core AI runtime, on the CPU."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import RuntimeFault, UsageError, raised_as
from md_export.spec.tensors import Array, Arrays, TensorSpec, check_arrays
from md_export.system.workspace import scratch_folder
from md_export.targets.coreai import bindings
from md_export.targets.coreai.save import write_program

_DTYPES: Final = ("float32", "int32")
_NAME: Final = "coreai.name"
OUTPUT: Final = "coreai.output"


class CoreAIRunner:
    """A loaded model with checked inputs. The runtime's functions are coroutines; a private event loop runs them."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._loop = asyncio.new_event_loop()
        stack = AsyncExitStack()
        weakref.finalize(self, _close, self._loop, stack)
        asset = bindings.AIModelAsset.load(path)
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

        check_arrays(self._name, self.inputs, inputs)
        given = {name: NDArray(np.array(value, order="C")) for name, value in inputs.items()}
        with raised_as(RuntimeFault, f"{self._name}: the Core AI runtime failed", bindings.VENDOR_ERRORS):
            made = self._loop.run_until_complete(self._function(given))
        return {spec.name: np.array(made[spec.name].numpy()) for spec in self.outputs}

    def _spec(self, name: str, found: Any) -> TensorSpec:
        if None in found.shape:
            raise RuntimeFault(f"{self._name}: {name} has no fixed shape; export it again")
        return TensorSpec(name, tuple(found.shape), str(found.dtype))


def load(path: Path, runtime: str | None = None) -> CoreAIRunner:
    """Open an ``.aimodel`` folder.

    Raises:
        RuntimeFault: the runtime refuses the asset.
        UsageError: ``runtime`` names another runtime.
    """
    if runtime is not None:
        raise UsageError(f"{path.name} runs in Apple's Core AI runtime only; leave out the runtime {runtime!r}")
    bindings.read_program(path)
    what = f"the Core AI runtime cannot load {path.name}; export it again"
    with raised_as(RuntimeFault, what, bindings.VENDOR_ERRORS):
        return CoreAIRunner(path)


def _close(loop: asyncio.AbstractEventLoop, stack: AsyncExitStack) -> None:
    loop.run_until_complete(stack.aclose())
    loop.close()


def values(path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
    """Execute a copy of the asset that also returns the named values, and return these in float32.

    Raises:
        RuntimeFault: the runtime refuses the asset or the inputs.
    """
    with watched(path, names) as run:
        return run(inputs)


@contextmanager
def watched(path: Path, names: Collection[str]) -> Iterator[Callable[[Arrays], dict[str, Array]]]:
    """Yield a function that does :func:`values` for several runs."""
    program = bindings.read_program(path)
    known = {name: value for value, name in names_of(program).items()}
    given = {name: str(number) for number, name in enumerate(names)}
    _give(program, {given[name]: known[name] for name in names})
    with scratch_folder() as scratch:
        copy = scratch / path.name
        write_program(program, copy, {})
        runner = load(copy)

        def run(inputs: Arrays) -> dict[str, Array]:
            made = runner.run(inputs)
            return {name: made[given[name]].astype(np.float32) for name in names}

        yield run


def names_of(program: Any) -> dict[Any, str]:
    """Name every value of ``main`` by its position in the program; a saved program has the same names."""
    block = bindings.main_graph(program).regions[0].blocks[0]
    found = {argument: f"%input{number}" for number, argument in enumerate(block.arguments)}
    for number, op in enumerate(bindings.operations(program)):
        found |= {value: f"%{number}#{index}" if index else f"%{number}" for index, value in enumerate(op.results)}
    return found


def _give(program: Any, wanted: Mapping[str, Any]) -> None:
    """Make ``main`` return these values instead of its outputs."""
    graph, output = bindings.main_graph(program), bindings.operations(program)[-1]
    with program._module._mlir_module.context, bindings.ir.Location.unknown():
        kind = bindings.ir.FunctionType(bindings.ir.TypeAttr(graph.attributes["function_type"]).value)
        made = bindings.ir.FunctionType.get(list(kind.inputs), [value.type for value in wanted.values()])
        labels = [bindings.ir.DictAttr.get({_NAME: bindings.ir.StringAttr.get(name)}) for name in wanted]
        graph.attributes["function_type"] = bindings.ir.TypeAttr.get(made)
        graph.attributes["res_attrs"] = bindings.ir.ArrayAttr.get(labels)
        with bindings.ir.InsertionPoint(output):
            bindings.dialect.output(list(wanted.values()))
        output.erase()
