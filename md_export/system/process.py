"""Processes that start warm: forks of a server that has imported what they need.

Importing torch and a converter takes seconds, a fork takes milliseconds. The server is a new process that imports and
forks, and computes nothing, so no thread of a library is in the middle of anything when it forks. Each fork is a
process of its own: its arguments and result are files, its log, environment and folder are the caller's, and its
memory goes back with its end.

Only Linux has a server. On a Mac each call is a new process, because Apple's frameworks, which numpy, torch and
coremltools load, may crash in a fork.

Who dies, and when: a fork ends with its server, and when the process that asked for it is gone; the server ends with
the process that started it. Each fork leads a process group, and the forks that it asks for itself join that group;
so a limit of memory counts them, and an end ends them all.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from md_export.system.worker import answer

WARM: Final = sys.platform == "linux"
# Passive: threads that spin between a graph's many small ops make it ten times slower on a busy machine.
_ENVIRONMENT: Final = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# Variables that libraries read when they are loaded: who changes one needs another server.
_READ_BY_LIBRARIES: Final = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_", "MALLOC_", "PYTHON", "TORCH")
# -P: a file in the current folder must not stand in for a library's module.
_START: Final = (sys.executable, "-P", "-c")
_BOOT: Final = "import sys; sys.path[:] = sys.argv[2:]; from md_export.system import "
MESSAGE: Final = 1 << 16
LOOK_S: Final = 1.0


def environment() -> dict[str, str]:
    """The environment of workers: the caller's, and the same order of hashes in each run."""
    return {**_ENVIRONMENT, **os.environ, "PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Exit:
    """End of a process: exit status, or the negative number of a signal; its own peak of memory where known."""

    status: int
    peak_bytes: int = 0


class Running:
    """A process that carries out the call in a folder."""

    pid: int

    def wait(self, limit_s: float | None) -> Exit | None:
        """Wait for the end; None where the process ran past the limit, and was stopped."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the process and all that it started, if it has not ended."""
        raise NotImplementedError


class NewProcess(Running):
    """A process that starts from nothing."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [*_START, f"{_BOOT}process; process.be_worker()", str(folder), *sys.path],
            stdin=subprocess.DEVNULL,
            env=environment(),
            process_group=0,
        )
        self.pid = self._process.pid

    def wait(self, limit_s: float | None) -> Exit | None:
        """As promised."""
        try:
            return Exit(self._process.wait(limit_s))
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """As promised."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


class Fork(Running):
    """A fork of the server; the server answers over ``connection``, and ends the fork when that is closed."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection

    def wait(self, limit_s: float | None) -> Exit | None:
        """As promised."""
        self._connection.settimeout(limit_s)
        try:
            told = self._connection.recv(MESSAGE)
        except TimeoutError:
            return None
        # Nothing: the server itself was killed, and the fork with it.
        return Exit(*json.loads(told)) if told else Exit(-signal.SIGKILL)

    def stop(self) -> None:
        """As promised."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(None)
            while self._connection.recv(MESSAGE):
                pass
        self._connection.close()


class Server:
    """The end of a server at the process that asks it for forks."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._control = control
        self._process = process

    @classmethod
    def start(cls) -> Server:
        """Start a server, which ends with this process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [*_START, f"{_BOOT}forkserver; forkserver.be_server()", str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        return cls(ours, process)

    def fork(self, folder: Path, modules: Sequence[str]) -> Fork | None:
        """A fork that carries out the call in ``folder``; None where the server died."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, suppress(OSError):
            message = json.dumps({"folder": str(folder), "modules": list(modules)}).encode()
            socket.send_fds(self._control, [message], [theirs.fileno()])
        told = ours.recv(MESSAGE)
        if told:
            return Fork(int(told), ours)
        ours.close()
        return None

    def close(self) -> None:
        """End the server and its forks."""
        self._control.close()
        if self._process is not None:
            try:
                self._process.wait(LOOK_S)
            except subprocess.TimeoutExpired:  # it is importing
                self._process.kill()
                self._process.wait()


class Pool:
    """The servers of this process: one, unless the environment of libraries changes. They start when needed."""

    def __init__(self) -> None:
        self._servers: dict[tuple[tuple[str, str], ...], Server] = {}
        self._lock = threading.Lock()
        self._broken = False

    def inherit(self, server: Server) -> None:
        """In a fork: ask the same server for more."""
        self._servers, self._lock = {_read_by_libraries(): server}, threading.Lock()

    def begin(self, folder: Path, modules: Sequence[str]) -> Running:
        """A process that carries out the call in ``folder``, warm if it can be.

        A library that ends the server when it is imported there is left to those who need it.
        """
        if not WARM:
            return NewProcess(folder)
        for attempt in range(3):
            key = _read_by_libraries()
            with self._lock:
                server = self._servers[key] if key in self._servers else self._servers.setdefault(key, Server.start())
            fork = server.fork(folder, () if self._broken else modules)
            if fork is not None:
                return fork
            self._forget(key, server)
            self._broken = attempt > 0  # the first may have been killed; two were not
        return NewProcess(folder)

    def _forget(self, key: tuple[tuple[str, str], ...], server: Server) -> None:
        with self._lock:
            if self._servers.get(key) is server:
                del self._servers[key]
        server.close()

    def close(self) -> None:
        """End all servers."""
        while self._servers:
            self._servers.popitem()[1].close()


POOL: Final = Pool()
atexit.register(POOL.close)
# A copy of this process, of multiprocessing for one, has a server of its own.
os.register_at_fork(after_in_child=POOL.__init__)  # type: ignore[misc]


def _read_by_libraries() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(_READ_BY_LIBRARIES)))


def be_worker() -> NoReturn:
    """Carry out one call as a new process."""
    folder = Path(sys.argv[1])
    del sys.argv[1:]
    end_with_parent()
    write_to(folder / "log.txt")
    answer(folder)
    sys.exit()


def write_to(log: Path) -> None:
    """Standard output and error of this process, those of its libraries in C++ too."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(stream, number)
    os.close(stream)


# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Linux kills the process, whatever a library is doing in it then; elsewhere a thread looks every second.

    "Parent" is the thread that started the process, so that one must not end first.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # gone before it was said
            os._exit(1)
    else:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)
