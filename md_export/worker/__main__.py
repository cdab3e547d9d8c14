"""The inside of a worker process: ``python -m md_export.worker TASK FOLDER``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from md_export.errors import MdExportError
from md_export.system.isolation import end_with_parent
from md_export.worker import TASKS


def main(task: str, folder: Path) -> None:
    """Answer one request. Errors of our own travel back as data; anything else is a crash with its traceback."""
    end_with_parent()
    (folder / "pid").write_text(str(os.getpid()), encoding="utf-8")
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    try:
        answer = TASKS[task](request)
    except MdExportError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
