"""Functions that read, run and change a saved Core AI asset."""

from __future__ import annotations

from md_export.targets.coreai.describe import describe
from md_export.targets.coreai.edit_graph import edit_graph
from md_export.targets.coreai.graph import graph
from md_export.targets.coreai.run import load, values
from md_export.targets.coreai.stored import edit, store_as_float, stored_weights

__all__ = ["describe", "edit", "edit_graph", "graph", "load", "store_as_float", "stored_weights", "values"]
