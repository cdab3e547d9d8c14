"""Independent measurements on all cores of this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Final

from md_export.errors import MdExportError, MissingExtraError, RuntimeFault

# A function of a module, plain data in and out: it is called in other processes, on other machines perhaps.
Measure = Callable[[dict[str, Any]], Any]
_CONNECT_S: Final = 10
# A worker of Dask may have several threads, and a measurement changes the module that its process holds.
_ONE_AT_A_TIME: Final = threading.Lock()
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
class Answer:
    """Of the request at ``index``, after ``seconds`` of work."""

    index: int
    seconds: float
    value: Any


def workers(jobs: int | None, dask: str | None) -> AbstractContextManager[Workers]:
    """Processes of this machine, one for each core unless ``jobs`` says otherwise, or those of a Dask scheduler."""
    return local_workers(jobs or os.cpu_count() or 1) if dask is None else dask_workers(dask)


def spread(measure: Measure, requests: Sequence[dict[str, Any]], found: Workers) -> Iterator[Answer]:
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


def timed(measure: Measure, request: dict[str, Any]) -> tuple[float, Any]:
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
    try:
        yield Workers(executor, jobs, lambda error: _DIED if isinstance(error, BrokenProcessPool) else None)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    executor.shutdown()


def _begin(threads: int) -> None:
    """In a new process, before anything heavy is imported."""
    # An interrupt at the terminal reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def dask_workers(address: str) -> Iterator[Workers]:
    """The workers of a Dask cluster, which execute what this process sends them: name only a scheduler of your own.

    Raises:
        MissingExtraError: Dask is not installed.
        RuntimeFault: nobody answers at the address, there are no workers, or they have another md-export.
    """
    if importlib.util.find_spec("distributed") is None:
        raise MissingExtraError("--dask needs distributed, which is not installed: pip install 'md-export[dask]'")
    distributed: Any = importlib.import_module("distributed")
    try:
        # An empty address would start a cluster here.
        client = distributed.Client(address or "tcp://", timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise RuntimeFault(f"no Dask scheduler answers at {address!r}: start one with: dask scheduler") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_S)
        except TimeoutError as error:
            raise RuntimeFault(f"{address} has no workers: start some with: dask worker {address}") from error
        _check_versions(client)
        executor = client.get_executor(pure=False)
        try:
            yield Workers(executor, len(client.nthreads()), _explain_dask)
        finally:
            executor.shutdown(wait=False)


def _check_versions(client: Any) -> None:
    try:
        versions: dict[str, str] = client.run(version)
    except Exception as error:
        raise RuntimeFault(_explain_dask(error)) from error
    others = {worker: found for worker, found in versions.items() if found != version()}
    if others:
        worker, found = min(others.items())
        raise RuntimeFault(f"the Dask worker {worker} has md-export {found}, this is {version()}; install the same")


def version() -> str:
    """Of md-export, in the process that is asked."""
    from md_export import __version__

    return __version__


def _explain_dask(error: Exception) -> str:
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return "a Dask worker died again and again, most likely for lack of memory: give each more, then run again"
    if isinstance(error, CancelledError):
        return "the Dask scheduler went away: start it again, then run the same command again"
    return (
        f"a Dask worker failed with {type(error).__name__}: {error}; workers need the same md-export with the same "
        "extras, and see the checkpoint at the same path"
    )
