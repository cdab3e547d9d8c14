"""Main loop of the server that forks worker processes; see :mod:`md_export.system.process`."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from md_export.system.process import MESSAGE, POLL_S, POOL, Server, end_with_parent, write_to
from md_export.system.worker import answer, call_of

# Converters make millions of small objects that live until the process ends; with Python's default thresholds the
# garbage collector would traverse them a thousand times.
_GARBAGE: Final = (100_000, 20, 20)


def run_server() -> NoReturn:
    """Serve fork requests of the process that started this one."""
    control = socket.socket(fileno=int(sys.argv[1]))
    del sys.argv[1:]
    gc.set_threshold(*_GARBAGE)
    _Server(control).serve()


@dataclass(frozen=True)
class _Child:
    """A fork: the connection that its exit is reported on, and its process group."""

    answers: socket.socket
    group: int


class _Server:
    """State of a server: one thread that waits for requests, for forks to exit and for clients to disconnect."""

    def __init__(self, control: socket.socket) -> None:
        self._parent = os.getppid()
        self._main = control
        self._forks: dict[int, _Child] = {}
        # Connections to clients, each with the process group that its forks join: 0 for this server's parent.
        self._controls: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._wake = socket.socketpair()
        self._listen(control, 0)

    def _listen(self, control: socket.socket, group: int) -> None:
        self._controls[control] = group
        self._selector.register(control, selectors.EVENT_READ, self._request)

    def serve(self) -> NoReturn:
        """Serve requests until the parent exits."""
        for one in self._wake:
            one.setblocking(False)
        self._selector.register(self._wake[0], selectors.EVENT_READ, self._reap)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake[1].fileno(), warn_on_full_buffer=False)
        while os.getppid() == self._parent:
            for key, _ in self._selector.select(POLL_S):
                if self._selector.get_map().get(key.fd) == key:  # an earlier event may have closed it
                    key.data(key.fileobj)
        self._leave()

    def _request(self, control: socket.socket) -> None:
        try:
            message, (connection,), _, _ = socket.recv_fds(control, MESSAGE, 1)
        except (OSError, ValueError):
            self._hang_up(control)
            return
        asked, answers = json.loads(message), socket.socket(fileno=connection)
        folder = Path(asked["folder"])
        sys.path[:] = call_of(folder).path
        gc.disable()  # imports leave no garbage; looking for it takes a tenth of their time
        for name in asked["modules"]:
            with suppress(Exception):  # the fork raises the error again if it needs the module
                importlib.import_module(name)
        gc.freeze()  # forks then neither copy nor traverse the shared objects
        gc.enable()
        try:
            self._fork(folder, control, answers)
        except OSError:  # no memory for another process; the client sees the closed connection
            answers.close()

    def _fork(self, folder: Path, control: socket.socket, answers: socket.socket) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = os.fork()
        if process == 0:
            group = self._controls[control]
            others = (child.answers for child in self._forks.values())
            for one in (ours, answers, *self._wake, *others, *self._controls):
                one.close()
            self._selector.close()
            _run_fork(folder, group, Server(theirs))
        theirs.close()
        child = _Child(answers, self._controls[control] or process)
        with suppress(OSError):
            os.setpgid(process, child.group)  # parent and child both call setpgid, because either may run first
        self._forks[process] = child
        self._listen(ours, child.group)
        self._selector.register(answers, selectors.EVENT_READ, self._abandon)
        with suppress(OSError):
            answers.send(str(process).encode())

    def _abandon(self, answers: socket.socket) -> None:
        """Kill a fork after its client has closed the connection."""
        self._selector.unregister(answers)
        for process, child in self._forks.items():
            if child.answers is answers:
                _end(process, child)

    def _reap(self, wake: socket.socket) -> None:
        wake.recv(MESSAGE)
        with suppress(ChildProcessError):
            while (found := os.wait4(-1, os.WNOHANG))[0]:
                process, status, usage = found
                if child := self._forks.pop(process, None):
                    ended = [os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]
                    with suppress(OSError):
                        child.answers.send(json.dumps(ended).encode())
                    if child.answers in self._selector.get_map():
                        self._selector.unregister(child.answers)
                    child.answers.close()

    def _hang_up(self, control: socket.socket) -> None:
        if control is self._main:
            self._leave()
        self._selector.unregister(control)
        del self._controls[control]
        control.close()

    def _leave(self) -> NoReturn:
        for process, child in self._forks.items():
            _end(process, child)
        os._exit(0)  # a normal exit would take seconds to unload the imported libraries


def _end(process: int, child: _Child) -> None:
    with suppress(ProcessLookupError):
        if child.group == process:
            os.killpg(process, signal.SIGKILL)
        else:
            os.kill(process, signal.SIGKILL)


def _run_fork(folder: Path, group: int, server: Server) -> NoReturn:
    """Carry out one call as a fork, and exit without returning to the server's code."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(OSError):
            os.setpgid(0, group)
        end_with_parent()
        write_to(folder / "log.txt")
        call = call_of(folder)
        os.environ.clear()
        os.environ.update(call.environment)
        os.chdir(call.folder)
        POOL.inherit(server)
        answer(folder)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (a crash, with its traceback in the log)
        traceback.print_exc()
    finally:
        # Libraries register cleanup such as removing their temporary files; os._exit would skip it.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
