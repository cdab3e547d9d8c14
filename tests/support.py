"""What test modules share besides fixtures. Imported as ``support``: a ``tests`` package may be installed already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from md_export.parity.verify import Verification

Exported = Callable[[str, str], Path]
# One precision a target, for properties that do not depend on the precision.
ONE_EACH = [("coreml", "fp16"), ("tflite", "int8"), ("onnx", "int8")]
# A name, and what was found.
Judged = tuple[str, Verification]
HOSTILE_PROMPT = '<script>alert("x")</script> | a cat'
