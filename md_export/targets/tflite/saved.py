"""Functions that read, run and change a saved .tflite file."""

from __future__ import annotations

from md_export.targets.tflite.describe import describe
from md_export.targets.tflite.edit_graph import edit_graph
from md_export.targets.tflite.graph import graph
from md_export.targets.tflite.half.watch import load
from md_export.targets.tflite.run import values
from md_export.targets.tflite.stored import edit, store_as_float, stored_weights

__all__ = ["describe", "edit", "edit_graph", "graph", "load", "store_as_float", "stored_weights", "values"]
