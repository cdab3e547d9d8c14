"""A small module through a whole target, in a scratch folder: what a canary and a corpus of operations are made by."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array, Arrays, TensorSpec
from md_export.targets.contract import LoweringJob, Target


def answer_of(
    target: Target, suffix: str, module: nn.Module, given: Arrays, output: TensorSpec, scheme: QuantScheme
) -> Array:
    """Lower, quantize, save, load, run: what the target's runtime makes of ``given``.

    ``given`` is float32, in the order of the module's inputs.

    Raises:
        MdExportError: the module cannot be converted, or does not run.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        job = LoweringJob(
            component="unet",
            module=module,
            inputs=tuple(TensorSpec(name, value.shape, "float32") for name, value in given.items()),
            outputs=(output,),
            example=given,
            scheme=scheme,
            calibration=(given,),
            workdir=Path(scratch),
        )
        path = Path(scratch) / f"trial{suffix}"
        target.lower(job).quantize(job).save(path)
        return target.load(path).run(given)[output.name]
