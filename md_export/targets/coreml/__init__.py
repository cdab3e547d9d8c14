"""Core ML: ``lower`` → ``quantize`` → ``save``, and ``load`` to execute the package where there is no Mac."""

from md_export.targets.coreml.describe import describe
from md_export.targets.coreml.lower import lower
from md_export.targets.coreml.package import save
from md_export.targets.coreml.quantize import quantize
from md_export.targets.coreml.run import load

__all__ = ["describe", "load", "lower", "quantize", "save"]
