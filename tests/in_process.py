"""Exports of small models without a process for each artifact, which would cost more than the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from md_export.engine import running as perform
from md_export.errors import MdExportError
from md_export.system import isolation
from md_export.system.isolation import Ended, Limits, Request, Result


@contextmanager
def in_process() -> Iterator[None]:
    """Functions are called where they are asked for; requests and results make no journey as JSON."""

    def attempt(
        function: Callable[[Request], Result],
        request: Request,
        limits: Limits | None = None,
        preload: Sequence[str] = (),
    ) -> Ended[Result]:
        del limits, preload
        try:
            return Ended(function(request), None, "", False, "")
        except MdExportError as error:
            return Ended(None, error, "", False, "")

    with pytest.MonkeyPatch.context() as patch:
        for module in (isolation, perform):
            patch.setattr(module, "attempt", attempt)
        yield
