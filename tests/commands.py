"""Run Python as ``subprocess.run`` does, in a fork of the server that md_export's own workers are forks of.

What takes a new process seconds is importing the vendors' libraries, and the suite starts hundreds. Arguments,
environment, folder, exit status and death by a signal are those of a new process; what the command isolates itself
runs in forks of the same server.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from md_export.system.process import POOL, environment
from md_export.system.wire import adapters, write
from md_export.system.worker import Call, write_call

# What workers import from outside, the slow ones of what these import late among them.
IMPORTED: Final = (
    "torch",
    "torch._dynamo",
    "transformers",
    "coremltools",
    "litert_torch",
    "ai_edge_quantizer",
    "onnxruntime.quantization",
    "onnxscript",
    "pydantic",
)


@dataclass(frozen=True)
class Command:
    """Arguments of the interpreter, ``-c`` or ``-m`` first, and files for what it says."""

    argv: tuple[str, ...]
    out: Path
    err: Path


@dataclass(frozen=True)
class Done:
    """The command came to its end."""


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    capture_output: bool = False,
    text: bool = False,
    timeout: float | None = None,
    **_: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run ``argv``, whose first item is this interpreter; as ``subprocess.run``."""
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        command = Command(tuple(argv[1:]), folder / "out", folder / "err")
        write(command, adapters(carry_out)[0], folder / "request.json")
        given = environment() if env is None else {**env}
        write_call(Call(__name__, carry_out.__name__, tuple(sys.path), given, str(cwd or Path.cwd())), folder)
        process = POOL.begin(folder, IMPORTED)
        try:
            ended = process.wait(timeout)
        finally:
            process.stop()
        if ended is None:
            raise subprocess.TimeoutExpired(argv, timeout or 0)
        found = [path.read_bytes() if path.exists() else b"" for path in (command.out, command.err)]
    out, err = ((item.decode() if text else item) if capture_output else None for item in found)
    return subprocess.CompletedProcess(argv, ended.status, out, err)


def carry_out(command: Command) -> Done:
    """Be ``python *argv``."""
    for number, path in enumerate((command.out, command.err), start=1):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(stream, number)
        os.close(stream)
    kind, what, *arguments = command.argv
    sys.argv = [kind, *arguments]
    sys.path.insert(0, "")
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        raise
    except BaseException:  # noqa: BLE001 (a crash of the command, as a new process shows it)
        traceback.print_exc()
        raise SystemExit(1) from None
    return Done()
