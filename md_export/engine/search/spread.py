"""Independent measurements on all cores of this machine, or on the workers of a Dask cluster."""

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

# Pickled: the function of a module that measures is called in other processes, on other machines perhaps.
Request = TypeVar("Request")
Result = TypeVar("Result")
# A worker of Dask may have several threads, and a measurement changes the module that its process holds.
_ONE_AT_A_TIME: Final = threading.Lock()
_ALSO: Final = ", and see the checkpoint at the same path"
_DIED: Final = (
    "a worker process died, most likely for lack of memory: free memory or give fewer --jobs, and run the same command "
    "again"
)


@dataclass(frozen=True)
class Workers:
    """Where measurements run.

    Attributes:
        count: how many run at a time.
        explain: of an exception that came instead of an answer, what to tell the user; None where it is not known.
    """

    executor: Executor
    count: int
    explain: Callable[[Exception], str | None]


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """Of the request at ``index``, after ``seconds`` of work."""

    index: int
    seconds: float
    value: Result


def workers(jobs: int | None, dask: str | None) -> AbstractContextManager[Workers]:
    """Processes of this machine, one for each core unless ``jobs`` says otherwise, or those of a Dask scheduler."""
    return local_workers(jobs or os.cpu_count() or 1) if dask is None else dask_workers(dask)


def spread(
    measure: Callable[[Request], Result], requests: Sequence[Request], found: Workers
) -> Iterator[Answer[Result]]:
    """Answers as they come, in any order.

    Raises:
        MdExportError: what ``measure`` raised.
        RuntimeFault: a worker died or cannot do the work.
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
    """What a worker executes."""
    with _ONE_AT_A_TIME:
        started = time.perf_counter()
        value = measure(request)
        return time.perf_counter() - started, value


@contextmanager
def local_workers(jobs: int) -> Iterator[Workers]:
    """Processes of their own, spawned: forks of a process with threads may hang. None outlives the block."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs, context, _begin, (threads,))
    with _interrupts_later():
        # All processes start with the first call, and inherit that: they leave interrupts to others before they can.
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
    """In a new process, before anything heavy is imported."""
    # An interrupt at the terminal reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    # A parent that was killed cannot end its workers, and they would wait for work for ever.
    end_with_parent()


@contextmanager
def dask_workers(address: str) -> Iterator[Workers]:
    """The workers of a Dask cluster, as :func:`md_export.engine.dask.connected`.

    Raises:
        MissingExtraError: Dask is not installed.
        RuntimeFault: nobody answers at the address, there are no workers, or they have another md-export.
    """
    with connected(address) as client:
        check_same(ask_each(client, version), version())
        executor = client.get_executor(pure=False)
        try:
            yield Workers(executor, len(client.nthreads()), partial(explain, also=_ALSO))
        finally:
            executor.shutdown(wait=False)
