"""Functions that read, run and change a saved package."""

from __future__ import annotations

from md_export.targets.coreml.describe import describe
from md_export.targets.coreml.edit_graph import edit_graph
from md_export.targets.coreml.graph import graph
from md_export.targets.coreml.run import load, values
from md_export.targets.coreml.stored import edit, store_as_float, stored_weights

__all__ = ["describe", "edit", "edit_graph", "graph", "load", "store_as_float", "stored_weights", "values"]
