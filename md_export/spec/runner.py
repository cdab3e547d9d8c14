"""Protocols of objects that compute a component: a torch module, or an artifact in its runtime."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from md_export.spec.tensors import Array, Arrays


class Runner(Protocol):
    """A component that can be executed, such as an artifact loaded in its runtime."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once and return the outputs; names, shapes and dtypes are those of the manifest.

        Raises:
            RuntimeFault: the runtime refused the artifact or the inputs.
        """
        ...


@runtime_checkable
class WatchedRunner(Runner, Protocol):
    """A runner that also checks values inside the artifact."""

    def hazards(self) -> tuple[str, ...]:
        """Return one line for each problem in the runs so far, even if the outputs look right."""
        ...
