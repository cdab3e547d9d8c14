"""ONNX target: standard opset-18 graphs for onnxruntime, float32, float16 or int8 QDQ."""

from __future__ import annotations

from md_export.targets.onnx.describe import describe
from md_export.targets.onnx.lower import lower
from md_export.targets.onnx.quantize import quantize
from md_export.targets.onnx.run import load
from md_export.targets.onnx.save import save

__all__ = ["describe", "load", "lower", "quantize", "save"]
