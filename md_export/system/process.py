"""Worker processes that start in milliseconds: forks of a server that has already imported their modules.

Importing torch and a converter takes seconds, a fork takes milliseconds. The server is a new process that only imports
and forks, so no library thread is running when it forks. A fork reads its arguments from a file and writes its result
to a file; it uses the caller's log, environment and folder, and its memory is freed when it exits.

Only Linux has a server. On a Mac each call is a new process, because Apple's frameworks, which numpy, torch and
coremltools load, may crash in a fork.

Lifetimes: a fork ends when its server ends or when the process that requested it exits; the server ends when the
process that started it exits. Each fork leads a process group, and forks that it requests join that group, so a memory
limit counts all of them and stopping the fork stops all of them.
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
# PASSIVE: threads that spin between the many small operations of a graph slow it down tenfold on a busy machine.
_ENVIRONMENT: Final = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
# Variables that libraries read when they are loaded: after a change of one, forks need a new server.
_READ_BY_LIBRARIES: Final = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_", "MALLOC_", "PYTHON", "TORCH")
# -P: a file in the current folder must not shadow a library's module.
_START: Final = (sys.executable, "-P", "-c")
_BOOT: Final = "import sys; sys.path[:] = sys.argv[2:]; from md_export.system import "
MESSAGE: Final = 1 << 16
POLL_S: Final = 1.0


def environment() -> dict[str, str]:
    """Return the environment of workers: the caller's, with a fixed hash seed so that each run is the same."""
    return {**_ENVIRONMENT, **os.environ, "PYTHONHASHSEED": "0"}


@dataclass(frozen=True)
class Exit:
    """Exit of a process: its status, or the negative number of a signal, and its peak resident bytes if known."""

    status: int
    peak_bytes: int = 0


class Running:
    """A process that carries out the call in a folder."""

    pid: int

    def wait(self, limit_s: float | None) -> Exit | None:
        """Wait for the exit and return it; None if the process reached the time limit and was stopped."""
        raise NotImplementedError

    def stop(self) -> None:
        """Kill the process and its descendants if it has not exited."""
        raise NotImplementedError


class NewProcess(Running):
    """A process that imports everything itself."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [*_START, f"{_BOOT}process; process.run_worker()", str(folder), *sys.path],
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
    """A fork of the server; the server reports its exit over ``connection`` and kills it when that is closed."""

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
        # An empty answer means that the server was killed, and with it the fork.
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
    """Client of a server: the connection over which a process requests forks."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._control = control
        self._process = process

    @classmethod
    def start(cls) -> Server:
        """Start a server that ends when this process exits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [*_START, f"{_BOOT}forkserver; forkserver.run_server()", str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        return cls(ours, process)

    def fork(self, folder: Path, modules: Sequence[str]) -> Fork | None:
        """Return a fork that carries out the call in ``folder``; None if the server died."""
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
                self._process.wait(POLL_S)
            except subprocess.TimeoutExpired:  # it cannot react while it imports a module
                self._process.kill()
                self._process.wait()


class Pool:
    """Servers of this process, started when needed: one for each set of environment variables that libraries read."""

    def __init__(self) -> None:
        self._servers: dict[tuple[tuple[str, str], ...], Server] = {}
        self._lock = threading.Lock()
        self._broken = False

    def inherit(self, server: Server) -> None:
        """Use the server that forked this process for further forks."""
        self._servers, self._lock = {_read_by_libraries(): server}, threading.Lock()

    def begin(self, folder: Path, modules: Sequence[str]) -> Running:
        """Return a process that carries out the call in ``folder``: a fork if possible, else a new process.

        If importing ``modules`` ends the server, they are not preloaded; each process imports them itself.
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
            self._broken = attempt > 0  # one server may have been killed by chance, not two
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
# A fork of this process, for example by multiprocessing, must not use the parent's servers.
os.register_at_fork(after_in_child=POOL.__init__)  # type: ignore[misc]


def _read_by_libraries() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith(_READ_BY_LIBRARIES)))


def run_worker() -> NoReturn:
    """Carry out one call as a new process."""
    folder = Path(sys.argv[1])
    del sys.argv[1:]
    end_with_parent()
    write_to(folder / "log.txt")
    answer(folder)
    sys.exit()


def write_to(log: Path) -> None:
    """Redirect standard output and error of this process, including those of C++ libraries, to a file."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number in (1, 2):
        os.dup2(stream, number)
    os.close(stream)


# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent() -> None:
    """Make this process end when its parent ends: by a signal on Linux, by a check every second elsewhere.

    The signal is sent when the thread that started this process ends, so that thread must outlive it.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before prctl
            os._exit(1)
    else:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
