"""Ranges of a float graph's activations over calibration inputs, as onnxruntime's quantizer takes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import CalibraterBase, TensorsData, create_calibrator

from md_export.spec.tensors import Arrays
from md_export.targets.contract import LoweringJob
from md_export.targets.observers import ObserverTable, portions
from md_export.targets.onnx.sessions import session_options

# Bytes of activations that one run may give: the full-size UNet has more than its weights.
_PORTION: Final = 1 << 29


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, cases: Sequence[Arrays]) -> None:
        self._cases = iter(cases)

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        case = next(self._cases, None)
        return None if case is None else dict(case)


def measure_ranges(source: Path, operators: Sequence[str], external: bool, job: LoweringJob) -> TensorsData:
    """Range of each float that one of the operators takes or gives, by the job's rule.

    Extremes come from onnxruntime's calibrator, which computes them in the graph. Its histograms are not taken: it
    holds the activations of all inputs at once, the first input fixes the width of a bin, and it has no least error.

    Args:
        source: the float graph.
        operators: their types.
        external: whether weights lie beside it.

    Raises:
        ValueError: an activation holds NaN or Inf.
    """
    path = source.with_suffix(".calibration.onnx")
    if job.ranges.observer != "min_max":
        return _observed(source, operators, external, path, job)
    calibrator = create_calibrator(
        source, operators, str(path), CalibrationMethod.MinMax, use_external_data_format=external
    )
    calibrator.collect_data(_Reader(job.calibration))
    return calibrator.compute_data()


def _observed(source: Path, operators: Sequence[str], external: bool, path: Path, job: LoweringJob) -> TensorsData:
    """By observers of ours, a portion of the activations at a time."""
    base = CalibraterBase(source, operators)
    names, infos = base.select_tensors_to_calibrate(base.model)
    seen = ObserverTable(job.ranges, symmetric=False)
    for portion in portions({name: _size(infos[name]) for name in sorted(names)}, _PORTION):
        del base.model.graph.output[:]
        base.model.graph.output.extend(infos[name] for name in portion)
        onnx.save(base.model, str(path), save_as_external_data=external)
        session = ort.InferenceSession(str(path), session_options(optimized=False))
        for case in job.calibration:
            for name, values in zip(portion, session.run(portion, dict(case)), strict=True):
                seen.add(name, values)
    floats = {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in seen.ranges().items()}
    return TensorsData(CalibrationMethod.MinMax, floats)


def _size(info: Any) -> int:
    """Bytes of one activation."""
    return int(4 * prod(axis.dim_value for axis in info.type.tensor_type.shape.dim))
