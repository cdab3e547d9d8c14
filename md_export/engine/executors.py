"""Executors for the steps of a build: in processes on this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from md_export.engine import dask
from md_export.engine.cache import Cache
from md_export.engine.costs import Measured
from md_export.engine.inputs import inputs_for_store, inputs_of
from md_export.engine.keys import FileHashes
from md_export.engine.plan import Cost, Plan, Step
from md_export.engine.request import BuildRequest
from md_export.engine.running import Begin, perform, said_in
from md_export.engine.schedule import Limits
from md_export.engine.shared_store import BackedCache, Store, store_url
from md_export.errors import MdExportError, RecipeError, RuntimeFault
from md_export.system.memory import installed_bytes, kill_children
from md_export.system.workspace import workspace

_LOOK_S: Final = 5.0


@dataclass(frozen=True)
class Executor:
    """Cache, limits and start function for the steps of one build.

    Attributes:
        cache: cache that holds the results of the steps.
        limits: number of concurrent steps and their memory.
        open: context manager that prepares the given steps and yields the function that starts one of them.
        news: returns the messages for the user since the last call.
        said: returns what the running step with a given key is doing, in words; empty if unknown.
    """

    cache: Cache
    limits: Limits
    open: Callable[[Sequence[Step]], AbstractContextManager[Begin]]
    news: Callable[[], Iterable[str]] = tuple
    said: Callable[[str], str] = lambda _: ""


def executor_of(request: BuildRequest, plan: Plan) -> AbstractContextManager[Executor]:
    """Return the executor that the request selects: Dask if ``request.dask`` is set, else this machine.

    Raises:
        MdExportError: the cluster or its store cannot be used.
    """
    return nullcontext(_here(request)) if request.dask is None else _on_dask(request, plan)


def _here(request: BuildRequest) -> Executor:
    cache = Cache(request.cache)
    limits = Limits(request.jobs, request.most_bytes or _most(installed_bytes()))
    works: list[Path] = []
    return Executor(
        cache,
        limits,
        lambda _: _processes(request, cache, works),
        said=lambda key: next((text for work in works if (text := said_in(work / key))), ""),
    )


@contextmanager
def _processes(request: BuildRequest, cache: Cache, works: list[Path]) -> Iterator[Begin]:
    """Yield a start function that runs steps in worker processes; an exception such as an interrupt kills them.

    The folder of the steps is added to ``works``.
    """
    with workspace(cache.work) as work:
        works.append(work)
        executor = ThreadPoolExecutor(request.jobs)
        try:
            yield lambda step, most_bytes: executor.submit(
                perform, step, cache, work, inputs_of(request), most_bytes, request.rejected
            )
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            kill_children()
            raise
        finally:
            executor.shutdown()


@contextmanager
def _on_dask(request: BuildRequest, plan: Plan) -> Iterator[Executor]:
    assert request.dask is not None and request.store is not None  # noqa: S101 (see BuildRequest)
    fused = [recipe.name for recipe in request.recipes if recipe.form == "cpu_fused"]
    if fused:
        raise RecipeError(f"recipe {fused[0]}: form cpu_fused is for the machine that makes it; build without --dask")
    targets = tuple(sorted({export.target for export in plan.exports}))
    with dask.connected(request.dask) as client:
        found: dict[str, dask.Worker] = dask.ask_each(client, dask.describe, targets)
        dask.check_same({address: worker.versions for address, worker in found.items()}, dask.versions(targets))
        cache = BackedCache(request.cache, Store(store_url(request.store)))
        limits = Limits(len(found), request.most_bytes or _least(found.values()), apart=True)
        yield Executor(cache, limits, partial(_workers, client, request, cache, targets), _News(client, set(found)))


@contextmanager
def _workers(
    client: Any, request: BuildRequest, cache: BackedCache, targets: tuple[str, ...], steps: Sequence[Step]
) -> Iterator[Begin]:
    """Copy everything that the steps need to the store, then yield the function that submits a step to Dask."""
    inputs = _brought(client, request, cache, steps)
    executor = client.get_executor(pure=False)

    def begin(step: Step, most_bytes: int) -> Future[Cost]:
        answer: Future[Cost] = Future()
        task = dask.RemoteTask(step, cache.store.url, inputs, most_bytes, targets, dask.versions(targets))
        try:
            asked = executor.submit(dask.carry_out, task)
        except Exception:  # noqa: BLE001 (a client without a scheduler raises; which class depends on the version)
            answer.set_exception(RuntimeFault(dask.explain(CancelledError())))
        else:
            asked.add_done_callback(partial(_pass_on, answer, Measured(cache.root / "measured"), step))
        return answer

    try:
        yield begin
    finally:
        # If the scheduler is gone, nothing is left to cancel.
        with suppress(Exception):
            executor.shutdown(wait=False)


def _brought(
    client: Any, request: BuildRequest, cache: BackedCache, steps: Sequence[Step]
) -> dict[str, tuple[str, str]]:
    """Upload the inputs and cached needs of the steps, and return the key and path of each input in the store.

    Raises:
        RuntimeFault: a worker does not find the inputs in the store.
    """
    if not steps:
        return {}
    inputs = inputs_for_store(request, FileHashes(cache.root / "seen"))
    for one in inputs.values():
        cache.store.put(one.entry, one.root)
    for key in {need for step in steps for need in step.needs} - {step.key for step in steps}:
        cache.share(key)
    blind = dask.ask_each(client, dask.lacks, cache.store.url, [one.entry.key for one in inputs.values()])
    for worker in sorted(worker for worker, lacking in blind.items() if lacking):
        raise RuntimeFault(
            f"the Dask worker {worker} does not find the uploaded files in {cache.store.url}: give a --store that "
            "is the same for all machines, such as s3://bucket/folder or file:// and a folder of a shared disk"
        )
    return {name: (one.entry.key, one.within) for name, one in inputs.items()}


def _pass_on(answer: Future[Cost], measured: Measured, step: Step, asked: Future[Cost]) -> None:
    """Copy the outcome of a Dask future to ``answer``, with errors translated to this package's classes."""
    error = CancelledError() if asked.cancelled() else asked.exception()
    if error is None:
        cost = asked.result()
        if cost.seconds:
            measured.add(step.cost_key, cost)
        answer.set_result(cost)
    elif isinstance(error, (MdExportError, OSError)):
        answer.set_exception(error)
    else:
        answer.set_exception(RuntimeFault(dask.explain(error)))


class _News:
    """Report Dask workers that have disappeared since the last call; polls at most every :data:`_LOOK_S` seconds."""

    def __init__(self, client: Any, known: set[str]) -> None:
        self._client, self._known, self._next = client, known, 0.0

    def __call__(self) -> Iterator[str]:
        if time.monotonic() < self._next or self._client.status != "running":
            return
        self._next = time.monotonic() + _LOOK_S
        try:
            now = set(self._client.nthreads())
        except OSError:
            return
        for worker in sorted(self._known - now):
            yield f"the Dask worker {worker} is gone; its step will be repeated"
        if self._known and not now:
            yield f"no Dask worker is left; start one: dask worker {self._client.scheduler.address}"
        self._known = now


def _least(workers: Iterable[dask.Worker]) -> int:
    """Return the memory in bytes that every worker may use; workers on the same machine share its memory."""
    found = list(workers)
    count = Counter(worker.host for worker in found)
    return min(_most(worker.bytes) // count[worker.host] for worker in found)


def _most(installed: int) -> int:
    return installed * 3 // 4
