"""One process per component and target: memory is bounded by the largest component, and a crash of a
converter or a runtime is an error message instead of the end of the run.

Requests and answers are JSON files, arrays travel as safetensors; a worker is ``python -m md_export.worker``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from md_export import errors
from md_export.errors import MdExportError, RuntimeFault
from md_export.targets.contract import Description
from md_export.tensors import Array, Arrays, save_tensors

# Passive: threads that spin between a graph's many small ops make it ten times slower on a busy machine.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


def call_worker(task: str, request: dict[str, Any], failure: type[MdExportError], what: str) -> dict[str, Any]:
    """Run one task in a process of its own and return its answer.

    Raises:
        MdExportError: the error that the worker reported, of its own class.
        ``failure``: the worker died; the message ends with its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        log = folder / "log.txt"
        with log.open("wb") as stream:
            status = subprocess.run(
                [sys.executable, "-m", "md_export.worker", task, str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**_ENVIRONMENT, **os.environ, "PYTHONHASHSEED": "0"},
                check=False,
            ).returncode
        answer = folder / "answer.json"
        if status == 0 and answer.is_file():
            result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            if "error" in result:
                raise getattr(errors, result["error"])(result["message"])
            return result
        raise failure(f"{what}: {_death(status)}{_tail(log)}")


@dataclass(frozen=True)
class Execution:
    """One output dict for each set of inputs, and what the artifact was found to hold."""

    outputs: list[dict[str, Array]]
    found: Description


def execute(target: str, path: Path, batches: Sequence[Arrays], runtime: str | None = None) -> Execution:
    """Run an artifact on each set of inputs, in its own runtime and a process of its own.

    Raises:
        RuntimeFault: the runtime refused the artifact or its inputs, or crashed.
        MissingExtraError: the target's runtime is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        given, made = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_batches(batches, given)
        request = {"target": target, "path": str(path), "inputs": str(given), "outputs": str(made)}
        what = f"{path.name} in the {target} runtime"
        answer = call_worker("execute", {**request, "runtime": runtime}, RuntimeFault, what)
        return Execution(load_batches(made), Description(**answer))


def save_batches(batches: Sequence[Arrays], path: Path) -> None:
    """Write sets of named arrays into one safetensors file, keys ``index/name``."""
    save_tensors(
        {f"{index}/{name}": value for index, batch in enumerate(batches) for name, value in batch.items()}, path
    )


def load_batches(path: Path) -> list[dict[str, Array]]:
    """Read what :func:`save_batches` wrote."""
    batches: dict[int, dict[str, Array]] = {}
    for key, value in load_file(path).items():
        index, name = key.split("/", 1)
        batches.setdefault(int(index), {})[name] = value
    return [batches[index] for index in sorted(batches)]


def _death(status: int) -> str:
    if status == -signal.SIGKILL:
        return "the process was killed, most likely for lack of memory; free memory or export one --component at a time"
    if status < 0:
        return f"the process crashed ({signal.Signals(-status).name})"
    return f"the process failed (status {status})"


def _tail(log: Path, lines: int = 6) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "; its last lines:\n  " + "\n  ".join(text[-lines:]) if text else ""
