"""Exports of small models without a process for each artifact, which would cost more than the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import md_export.engine.export
import md_export.targets.execution
from md_export.errors import MdExportError
from md_export.worker import TASKS


@contextmanager
def in_process() -> Iterator[None]:
    """Workers' tasks are called where they are asked for; errors are their own, without the journey as JSON."""

    def call(task: str, request: dict[str, Any], failure: type[MdExportError], what: str) -> dict[str, Any]:
        del failure, what
        return TASKS[task](request)

    with pytest.MonkeyPatch.context() as patch:
        for module in (md_export.targets.execution, md_export.engine.export):
            patch.setattr(module, "call_worker", call)
        yield
