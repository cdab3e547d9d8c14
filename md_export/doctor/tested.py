"""The libraries that md-export works with: the ranges that pyproject.toml allows, and what CI last ran with.

A test holds the ranges against pyproject.toml; versions change with each run of CI that passes on others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Tested:
    """One distribution: its name, the versions allowed, the one tested (None: CI does without it), its extra."""

    name: str
    allowed: str
    version: str | None
    extra: str | None = None


PYTHON: Final = Tested("python", ">=3.11", "3.11.7")
TESTED: Final = (
    Tested("click", ">=8.1", "8.5.1"),
    Tested("numpy", ">=2.3,<2.4", "2.3.5"),
    Tested("packaging", ">=24", "26.3"),
    Tested("pillow", ">=11", "13.0.0"),
    Tested("psutil", ">=6", "7.2.2"),
    Tested("pydantic", ">=2.9,<3", "2.11.10"),
    Tested("rich", ">=13.9", "15.0.0"),
    Tested("safetensors", ">=0.5", "0.8.0"),
    Tested("tomlkit", ">=0.13", "0.15.2"),
    Tested("torch", ">=2.11,<2.14", "2.13.0"),
    Tested("transformers", ">=5.20,<6", "5.23.0"),
    Tested("coremltools", ">=9.0,<9.1", "9.0", "coreml"),
    Tested("litert-torch", ">=0.10,<0.11", "0.10.0", "tflite"),
    Tested("tensorflow", ">=2.21,<2.22", None, "tensorflow"),
    Tested("diffusers", ">=0.37", "0.42.1", "diffusers"),
    Tested("onnx", ">=1.19", "1.23.2", "onnx"),
    Tested("onnxruntime", ">=1.23", "1.31.1", "onnx"),
    Tested("onnxscript", ">=0.5", "0.7.2", "onnx"),
    Tested("onnxruntime-qnn", "==2.7.0", "2.7.0", "qnn"),
    Tested("coreai-core", "==1.0.0b3", "1.0.0b3", "coreai"),
    Tested("coreai-torch", "==0.4.3", "0.4.3", "coreai"),
    Tested("jinja2", ">=3.1", "3.1.6", "report"),
    Tested("matplotlib", ">=3.9", "3.11.2", "report"),
    Tested("distributed", ">=2024.8", "2026.8.0", "dask"),
    Tested("fsspec", ">=2024.6", "2026.9.0", "dask"),
    # What litert-torch brings; their versions follow from its own.
    Tested("ai-edge-litert", "", "2.3.0", "tflite"),
    Tested("ai-edge-quantizer", "", "0.10.0", "tflite"),
    Tested("litert-converter", "", "0.5.0", "tflite"),
)
