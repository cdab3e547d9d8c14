"""Many steps with a UNet's artifact, by whoever runs artifacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from md_export.sampler import Ddim
from md_export.sampling import denoise, only_output
from md_export.tensors import Array, Arrays
from md_export.workers import Execution, Walk

# Runs an artifact of a target on batches, as :func:`md_export.workers.execute` does.
Execute = Callable[[str, Path, Sequence[Arrays]], Execution]
# Takes all steps of some pictures, as :func:`md_export.workers.walk` does.
Walker = Callable[[str, Path, Sequence[Arrays], Ddim], Walk]


def walker(execute: Execute) -> Walker:
    """One that takes each step by ``execute``, for all pictures at a time."""

    def walk(target: str, path: Path, starts: Sequence[Arrays], ddim: Ddim) -> Walk:
        hazards: dict[str, None] = {}

        def calls(batches: Sequence[Arrays]) -> list[Array]:
            run = execute(target, path, batches)
            hazards.update(dict.fromkeys(run.hazards))
            return [only_output(outputs) for outputs in run.outputs]

        return Walk([*denoise(calls, starts, ddim)], tuple(hazards))

    return walk
