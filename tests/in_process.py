"""Exports of small models without a process for each artifact, which would cost more than the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from md_export.engine import perform
from md_export.errors import MdExportError
from md_export.system import isolation
from md_export.system.isolation import Ended, Limits
from md_export.worker import TASKS, calling

Request = TypeVar("Request")
Result = TypeVar("Result")


@contextmanager
def in_process() -> Iterator[None]:
    """Functions are called where they are asked for; requests and results make no journey as JSON."""

    def attempt(function: Callable[[Request], Result], request: Request, limits: Limits | None = None) -> Ended[Result]:
        del limits
        try:
            return Ended(function(request), None, "", False, "")
        except MdExportError as error:
            return Ended(None, error, "", False, "")

    def run_worker(task: str, request: dict[str, Any], limit_s: float | None = None) -> calling.Ended:
        del limit_s
        try:
            answer = TASKS[task](request)
        except MdExportError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        return calling.Ended(answer, "", False, "")

    with pytest.MonkeyPatch.context() as patch:
        for module in (isolation, perform):
            patch.setattr(module, "attempt", attempt)
        patch.setattr(calling, "run_worker", run_worker)
        yield
