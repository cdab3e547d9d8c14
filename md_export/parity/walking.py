"""Many steps with a UNet's artifact, by whoever runs artifacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from md_export.denoising import denoise
from md_export.executing import Execution, Walk
from md_export.sampler import Ddim
from md_export.sampling import only_output
from md_export.tensors import Array, Arrays

# Runs an artifact of a target on batches, as :func:`md_export.executing.execute` does.
Execute = Callable[[str, Path, Sequence[Arrays]], Execution]
# Takes all steps of some pictures, as :func:`md_export.executing.walk` does.
Walker = Callable[[str, Path, Sequence[Arrays], Ddim, Path | None], Walk]


def walker(execute: Execute) -> Walker:
    """One that takes each step by ``execute``, for all pictures at a time."""

    def walk(target: str, path: Path, starts: Sequence[Arrays], ddim: Ddim, control: Path | None = None) -> Walk:
        hazards: dict[str, None] = {}

        def run(artifact: Path, batches: Sequence[Arrays]) -> Sequence[Arrays]:
            made = execute(target, artifact, batches)
            hazards.update(dict.fromkeys(made.hazards))
            return made.outputs

        def calls(batches: Sequence[Arrays]) -> list[Array]:
            return [only_output(outputs) for outputs in run(path, batches)]

        controls = None if control is None else partial(run, control)
        return Walk([*denoise(calls, starts, ddim, controls)], tuple(hazards))

    return walk
