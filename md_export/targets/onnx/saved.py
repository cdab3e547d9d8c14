"""Functions that read, run and change a saved ONNX file."""

from __future__ import annotations

from md_export.targets.onnx.describe import describe
from md_export.targets.onnx.edit_graph import edit_graph
from md_export.targets.onnx.graph import graph
from md_export.targets.onnx.run import load, values
from md_export.targets.onnx.stored import edit, store_as_float, stored_weights

__all__ = ["describe", "edit", "edit_graph", "graph", "load", "store_as_float", "stored_weights", "values"]
