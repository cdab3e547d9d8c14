"""Commands that start in milliseconds: forks of a server that has imported the vendors' libraries, no more.

What takes a new process seconds is those imports, and the suite starts hundreds. md_export itself is imported in each
fork, its arguments, environment, folder, exit status and death by a signal are those of ``subprocess.run``; only the
interpreter's own start-up is not repeated. What commands isolate runs in forks of their own server, as users have it.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, NoReturn

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
# As md_export.system.isolation sets them; read when the libraries are loaded.
START: Final = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}


class Forks:
    """Starts its server with the first process asked for. A stand-in for ``subprocess`` in ``isolation``."""

    DEVNULL = subprocess.DEVNULL
    STDOUT = subprocess.STDOUT
    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self, folder: Path | None = None, imported: Sequence[str] = IMPORTED) -> None:
        self._folder = folder
        self._imported = imported
        self._server: subprocess.Popen[bytes] | None = None

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: IO[bytes] | None = None,
        capture_output: bool = False,
        text: bool = False,
        timeout: float | None = None,
        **_: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """As ``subprocess.run`` of this interpreter with ``-m`` or ``-c``; ``stdout`` takes standard error too."""
        with tempfile.TemporaryDirectory() as scratch:
            both = stdout.name if stdout else None
            files = [both or f"{scratch}/{name}" for name in ("out", "err")]
            request = {"argv": argv[1:], "env": dict(env or os.environ), "cwd": str(cwd or Path.cwd()), "files": files}
            status = self._ask(self._start(), request, timeout)
            found = [Path(path).read_bytes() for path in files] if capture_output else [None, None]
        out, err = (item.decode() if text and item is not None else item for item in found)
        return subprocess.CompletedProcess(argv, status, out, err)

    def _start(self) -> Path:
        if self._folder is None:
            # Not pytest's own folder: the path of a socket has a hundred characters at most.
            self._folder = Path(tempfile.mkdtemp(prefix="forks-"))
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(self._folder), *self._imported],
                env={**START, **os.environ, "PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert self._server.stdout is not None
            assert self._server.stdout.readline() == b"ready\n"
        return self._folder

    def _ask(self, folder: Path, request: dict[str, Any], timeout: float | None) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "socket"))
            answers = client.makefile("rwb")
            answers.write(json.dumps(request).encode() + b"\n")
            answers.flush()
            process = int(answers.readline())
            client.settimeout(timeout)
            try:
                return int(answers.readline())
            except TimeoutError:
                os.kill(process, signal.SIGKILL)
                raise subprocess.TimeoutExpired(request["argv"], timeout or 0) from None

    def close(self) -> None:
        """Stop the server, if it was needed."""
        if self._server and self._folder:
            self._server.terminate()
            self._server.wait()


# One for each process that runs tests.
FORKS: Final = Forks()


class _Handler(socketserver.StreamRequestHandler):
    """Runs in a fork of its own, and waits for the one that does the work."""

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        process = os.fork()
        if process == 0:
            self.connection.close()
            _become(**request)
        self.wfile.write(b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        with suppress(BrokenPipeError):  # the time limit was reached
            self.wfile.write(b"%d\n" % os.waitstatus_to_exitcode(status))


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    max_children = 1000
    parent = os.getppid()

    def service_actions(self) -> None:
        super().service_actions()
        if os.getppid() != self.parent:
            sys.exit("whoever asked is gone")


def _become(argv: list[str], env: dict[str, str], cwd: str, files: list[str]) -> NoReturn:
    """Be ``python *argv``, and leave."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    status = _status_of(argv)
    # What a library wants to clean up at the end, temporary files for one.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status_of(argv: list[str]) -> int:
    kind, what, *arguments = argv
    sys.argv = [kind, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


def _serve(folder: Path, imported: Sequence[str]) -> None:
    sys.path[0] = ""
    # Not SIGINT, which a shell's background jobs ignore.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for name in imported:
        importlib.import_module(name)
    try:
        with _Server(str(folder / "socket"), _Handler) as server:
            print("ready", flush=True)
            server.serve_forever()
    finally:
        shutil.rmtree(folder)
        # Taking down all that was imported takes seconds.
        os._exit(0)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2:])
