"""What test modules share besides fixtures. Imported as ``support``: a ``tests`` package may be installed already."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from md_export.errors import MissingExtraError
from md_export.parity.verdict import Verification
from md_export.targets import TARGETS

Exported = Callable[[str, str], Path]
# One precision a target, for properties that do not depend on the precision.
ONE_EACH = [("coreml", "fp16"), ("tflite", "int8"), ("onnx", "int8")]
# A name, and what was found.
Judged = tuple[str, Verification]
HOSTILE_PROMPT = '<script>alert("x")</script> | a cat'


def installed(target: str) -> None:
    """Skips where a target's libraries are not installed; in CI, which installs all, that is a failure."""
    try:
        TARGETS[target].require()
    except MissingExtraError as error:
        if os.environ.get("MD_EXPORT_REQUIRE_ALL"):
            pytest.fail(str(error))
        pytest.skip(str(error))


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of this session; the workers of a parallel run share one above their own."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(
    tmp_path_factory: pytest.TempPathFactory, folder: str, make: Callable[[str, str, Path], object]
) -> Exported:
    """Calls ``make`` for what nobody asked for yet."""
    root = shared_folder(tmp_path_factory) / folder
    root.mkdir(exist_ok=True)

    def get(target: str, precision: str) -> Path:
        out = root / f"{target}-{precision}"
        with FileLock(root / f"{out.name}.lock"):
            if not out.exists():
                make(target, precision, out)
        return out

    return get
