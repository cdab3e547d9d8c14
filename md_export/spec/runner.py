"""Whoever computes a component: a torch module, or an artifact in its runtime."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from md_export.spec.tensors import Array, Arrays


class Runner(Protocol):
    """An artifact loaded in its own runtime."""

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once. Names, shapes and dtypes are the manifest's.

        Raises:
            RuntimeFault: the runtime refused the artifact or the inputs.
        """
        ...


@runtime_checkable
class WatchedRunner(Runner, Protocol):
    """A runner that sees inside the artifact."""

    def hazards(self) -> tuple[str, ...]:
        """What went wrong in the runs so far although the outputs may look right: one line each."""
        ...
