"""What worker processes do: one function a task, plain data in and out; see :mod:`md_export.system.isolation`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from md_export.worker import judging, making, running

TASKS: Final[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    task.__name__: task
    for task in (
        making.build,
        making.join,
        making.split,
        running.execute,
        running.walk,
        running.execute_on_gpu,
        running.compile_for_npu,
        running.cut_for_npu,
        running.execute_on_npu,
        running.try_on_npu,
        running.canary,
        judging.costs,
        judging.audit,
        judging.self_test,
        judging.attribute,
        judging.rewritten,
        judging.contract,
        judging.crosscheck,
        judging.crosscheck_operations,
    )
}
