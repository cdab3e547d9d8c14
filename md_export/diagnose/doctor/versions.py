"""Installed versions against the tested ones."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from md_export.diagnose.doctor.finding import Finding


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
    Tested("typing-extensions", ">=4.12", "4.12.2"),
    Tested("coremltools", ">=9.0,<9.1", "9.0", "coreml"),
    Tested("protobuf", ">=6.31", "7.36.2", "coreml"),
    Tested("litert-torch", ">=0.10,<0.11", "0.10.0", "tflite"),
    Tested("ai-edge-litert", ">=2.3,<2.4", "2.3.0", "tflite"),
    Tested("ai-edge-quantizer", ">=0.10,<0.11", "0.10.0", "tflite"),
    Tested("litert-converter", ">=0.5,<0.6", "0.5.0", "tflite"),
    Tested("flatbuffers", ">=25", "25.12.19", "tflite"),
    Tested("tensorflow", ">=2.21,<2.22", None, "tensorflow"),
    Tested("diffusers", ">=0.37", "0.42.1", "diffusers"),
    Tested("onnx", ">=1.19", "1.23.2", "onnx"),
    Tested("onnxruntime", ">=1.23", "1.31.1", "onnx"),
    Tested("onnxscript", ">=0.5", "0.7.2", "onnx"),
    Tested("onnx-ir", ">=0.1.16", "1.1.0", "onnx"),
    Tested("ml-dtypes", ">=0.5.4", "0.6.0", "onnx"),
    Tested("protobuf", ">=6.31", "7.36.2", "onnx"),
    Tested("onnxruntime-qnn", "==2.7.0", "2.7.0", "qnn"),
    Tested("coreai-core", "==1.0.0b3", "1.0.0b3", "coreai"),
    Tested("coreai-torch", "==0.4.3", "0.4.3", "coreai"),
    Tested("jinja2", ">=3.1", "3.1.6", "report"),
    Tested("matplotlib", ">=3.9", "3.11.2", "report"),
    Tested("distributed", ">=2024.8", "2026.8.0", "dask"),
    Tested("fsspec", ">=2024.6", "2026.9.0", "dask"),
)


_AREA = "versions"


def version_of(name: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_findings(
    table: Sequence[Tested] = TESTED, installed: Callable[[str], str | None] = version_of
) -> tuple[Finding, ...]:
    """One finding for Python and each library."""
    return (_judged(PYTHON, platform.python_version()), *(_judged(row, installed(row.name)) for row in table))


def _judged(row: Tested, found: str | None) -> Finding:
    if found is None:
        if row.extra is None:
            return Finding(_AREA, row.name, "broken", "missing", f"pip install '{row.name}{row.allowed}'")
        return Finding(_AREA, row.name, "not installed", "-", f"pip install 'md-export[{row.extra}]'")
    if not _allows(row.allowed, found):
        advice = f"install Python {row.allowed}" if row is PYTHON else f"pip install '{row.name}{row.allowed}'"
        return Finding(_AREA, row.name, "broken", f"{found}, outside {row.allowed}", advice)
    if row.version not in (None, *_names(found)):
        return Finding(_AREA, row.name, "note", f"{found}, last tested with {row.version}")
    return Finding(_AREA, row.name, "ok", found)


def _allows(allowed: str, found: str) -> bool:
    """Whether a version is in the range; builds that call themselves otherwise (``2.13.0+cpu``) count as their base."""
    try:
        return any(SpecifierSet(allowed).contains(name, prereleases=True) for name in _names(found))
    except (InvalidVersion, InvalidSpecifier):
        return False


def _names(found: str) -> tuple[str, str]:
    """A version without its build, and without being a pre-release."""
    return Version(found).public, Version(found).base_version
