"""TFLite target: float32, float16-weight or int8 files for LiteRT, lowered by litert_torch."""

from __future__ import annotations

from md_export.targets.tflite.describe import describe
from md_export.targets.tflite.lower import lower
from md_export.targets.tflite.quantize import quantize
from md_export.targets.tflite.run import load
from md_export.targets.tflite.save import save

__all__ = ["describe", "load", "lower", "quantize", "save"]
