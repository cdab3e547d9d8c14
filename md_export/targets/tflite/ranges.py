"""Ranges of a float .tflite file's tensors over calibration inputs, as ai_edge_quantizer takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from md_export.errors import ConversionError
from md_export.targets.contract import LoweringJob
from md_export.targets.observers import ObserverTable
from md_export.targets.tflite.lower import SIGNATURE

_THREADS = 2


def measure_ranges(source: Path, quantizer: Any, job: LoweringJob) -> dict[str, Any]:
    """Range of each tensor that the quantizer's recipe asks for, by its name: arrays ``min`` and ``max``.

    ai_edge_quantizer's calibrator measures extremes and shows no values to what it lets others put in its place, so
    other ranges than the extremes come from a run of our own.

    Raises:
        ConversionError: no calibration inputs.
        ValueError: a tensor holds NaN or Inf.
    """
    if not job.calibration:
        raise ConversionError(f"int8_static needs calibration inputs, but {job.component} has none")
    extremes = _extremes(source, quantizer, job)
    return extremes if job.ranges.observer == "min_max" else extremes | _observed(source, extremes, job)


def _extremes(source: Path, quantizer: Any, job: LoweringJob) -> dict[str, Any]:
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    rules = RecipeManager()
    rules.load_quantization_recipe(quantizer.get_quantization_recipe())
    # The default, a moving average, would forget all but the last few inputs.
    calibrator = Calibrator(str(source), num_threads=_THREADS, qsv_update_func=min_max_update)
    # One call for each: it makes a list of what it is given, only to count it.
    for inputs in job.calibration if job.ranges.observer == "min_max" else job.calibration[:1]:
        calibrator.calibrate({SIGNATURE: [dict(inputs)]}, rules)
    return cast(dict[str, Any], calibrator.get_model_qsvs())


def _observed(source: Path, extremes: dict[str, Any], job: LoweringJob) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(source), num_threads=_THREADS, experimental_preserve_all_tensors=True)
    runner, seen = interpreter.get_signature_runner(SIGNATURE), ObserverTable(job.ranges, symmetric=False)
    places = {item["name"]: item["index"] for item in interpreter.get_tensor_details() if item["name"] in extremes}
    for inputs in job.calibration:
        runner(**inputs)
        for name, place in places.items():
            seen.add(name, interpreter.get_tensor(place))
    return {name: _as_extremes(extremes[name], *ends) for name, ends in seen.ranges().items()}


def _as_extremes(known: dict[str, Any], low: float, high: float) -> dict[str, Any]:
    """In the shape and type that the calibrator gives."""
    return {**known, "min": np.full_like(known["min"], low), "max": np.full_like(known["max"], high)}
