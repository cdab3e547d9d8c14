"""Parallel execution of independent measurements, on all cores of this machine or on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from md_export.engine.dask import ask_each, check_same, connected, explain, version
from md_export.errors import MdExportError, RuntimeFault
from md_export.system.process import end_with_parent

# Requests and results are pickled: the measuring function runs in other processes, possibly on other machines.
Request = TypeVar("Request")
Result = TypeVar("Result")
# A Dask worker can have several threads, and a measurement modifies the module that all threads of its process share.
_ONE_AT_A_TIME: Final = threading.Lock()
_ALSO: Final = ", and see the checkpoint at the same path"
_DIED: Final = (
    "a worker process died, most likely for lack of memory: free memory or give fewer --jobs, and run the same command "
    "again"
)


@dataclass(frozen=True)
class Workers:
    """Executor for measurements.

    Attributes:
        count: number of measurements that run at the same time.
        explain: returns the error message for an exception from the executor; None if the exception is unknown.
    """

    executor: Executor
    count: int
    explain: Callable[[Exception], str | None]


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """Result ``value`` of the request at ``index``, measured in ``seconds`` of work."""

    index: int
    seconds: float
    value: Result


def workers(jobs: int | None, dask: str | None) -> AbstractContextManager[Workers]:
    """Return the workers of the Dask scheduler at address ``dask``, or ``jobs`` local processes if it is None.

    The default for ``jobs`` is one process that uses all cores.
    """
    return local_workers(jobs or 1) if dask is None else dask_workers(dask)


def spread(
    measure: Callable[[Request], Result], requests: Sequence[Request], found: Workers
) -> Iterator[Answer[Result]]:
    """Run ``measure`` on all requests and yield the answers in order of completion.

    Raises:
        MdExportError: the error that ``measure`` raised.
        RuntimeFault: a worker died or cannot run the measurement.
    """
    try:
        asked = {found.executor.submit(timed, measure, request): index for index, request in enumerate(requests)}
        for future in as_completed(asked):
            seconds, value = future.result()
            yield Answer(asked[future], seconds, value)
    except MdExportError:
        raise
    except Exception as error:
        text = found.explain(error)
        if text is None:
            raise
        raise RuntimeFault(text) from error


def timed(measure: Callable[[Request], Result], request: Request) -> tuple[float, Result]:
    """Run one measurement on a worker, one at a time per process; return its duration in seconds and its result."""
    with _ONE_AT_A_TIME:
        started = time.perf_counter()
        value = measure(request)
        return time.perf_counter() - started, value


@contextmanager
def local_workers(jobs: int) -> Iterator[Workers]:
    """Yield ``jobs`` local worker processes, all of which end with the context.

    They are spawned, because forks of a process with threads can hang.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs, context, _begin, (threads,))
    with _interrupts_later():
        # The first call starts all processes. They inherit the blocked SIGINT, so that an interrupt cannot reach them
        # before _begin ignores it.
        executor.submit(int)
    try:
        yield Workers(executor, jobs, lambda error: _DIED if isinstance(error, BrokenProcessPool) else None)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    executor.shutdown()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(threads: int) -> None:
    """Initialize a worker process, before large libraries are imported."""
    # An interrupt at the terminal reaches all processes; the parent handles it and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    # A killed parent cannot end its workers, and they would wait for work forever.
    end_with_parent()


@contextmanager
def dask_workers(address: str) -> Iterator[Workers]:
    """Yield the workers of a Dask cluster; see :func:`md_export.engine.dask.connected`.

    Raises:
        MissingExtraError: Dask is not installed.
        RuntimeFault: no scheduler answers at the address, it has no workers, or they have another md-export version.
    """
    with connected(address) as client:
        check_same(ask_each(client, version), version())
        executor = client.get_executor(pure=False)
        try:
            yield Workers(executor, len(client.nthreads()), partial(explain, also=_ALSO))
        finally:
            executor.shutdown(wait=False)
