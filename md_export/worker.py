"""The inside of a worker process: ``python -m md_export.worker TASK FOLDER``; see :mod:`md_export.workers`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from md_export.errors import MdExportError


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Make one artifact; answers with its manifest entry."""
    from md_export.artifact import entry_to_dict
    from md_export.build import BuildStep, build_component

    return entry_to_dict(build_component(BuildStep.from_dict(request)))


def execute(request: dict[str, Any]) -> dict[str, Any]:
    """Run one artifact on batches of inputs; outputs go to the named file, the answer is what it was found to hold."""
    import dataclasses

    from md_export.targets import TARGETS
    from md_export.workers import load_batches, save_batches

    target = TARGETS[request["target"]].open()
    options = {} if request["runtime"] is None else {"runtime": request["runtime"]}
    runner = target.load(Path(request["path"]), **options)
    save_batches([runner.run(batch) for batch in load_batches(Path(request["inputs"]))], Path(request["outputs"]))
    return dataclasses.asdict(target.describe(Path(request["path"])))


TASKS: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"build": build, "execute": execute}


def main(task: str, folder: Path) -> None:
    """Answer one request. Errors of our own travel back as data; anything else is a crash with its traceback."""
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        answer = TASKS[task](request)
    except MdExportError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
