"""Carry out one call in a worker process: read the request, call the function, write the result."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from md_export import errors
from md_export.errors import MachineError, MdExportError, is_exhausted, one_line
from md_export.system.wire import adapters, read, write

_ERRORS: Final = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MdExportError)
}


@dataclass(frozen=True)
class Call:
    """A function of a module, with the module search path, environment and current folder to call it in."""

    module: str
    name: str
    path: tuple[str, ...]
    environment: dict[str, str]
    folder: str


def write_call(call: Call, folder: Path) -> None:
    """Write the call to ``folder``, where the worker also finds the request."""
    (folder / "call.json").write_text(json.dumps(asdict(call)), encoding="utf-8")


def call_of(folder: Path) -> Call:
    """Read the call that :func:`write_call` wrote."""
    return Call(**json.loads((folder / "call.json").read_text(encoding="utf-8")))


def answer(folder: Path) -> None:
    """Carry out the call in ``folder``. An MdExportError is written to a file; any other error is a crash."""
    call = call_of(folder)
    sys.path[:] = call.path
    try:
        function: Any = getattr(importlib.import_module(call.module), call.name)
        asked, answered = adapters(function)
        write(function(read(asked, folder / "request.json")), answered, folder / "result.json")
    except MdExportError as error:
        _tell(MachineError(str(error)) if is_exhausted(str(error)) else error, folder)
    except ImportError as error:
        _tell(MachineError(f"a library does not load: {one_line(error)}; run md-export doctor"), folder)
    except (MemoryError, OSError) as error:
        if not isinstance(error, MemoryError) and not is_exhausted(str(error)):
            raise
        _tell(MachineError(f"{one_line(error)}; free memory or disk space (TMPDIR, -o), nothing was kept"), folder)


def _tell(error: MdExportError, folder: Path) -> None:
    text = json.dumps({"error": type(error).__name__, "message": str(error)})
    (folder / "error.json").write_text(text, encoding="utf-8")


def read_error(folder: Path) -> MdExportError | None:
    """Return the MdExportError that the function raised; None if it raised none."""
    path = folder / "error.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return _ERRORS[found["error"]](found["message"])
