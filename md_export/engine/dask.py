"""What a worker of a cluster does: fetch what a step needs, carry the step out, and bring what it made to the store.

It needs nothing of the machine that asks but the store: the checkpoint comes from there, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from typing import Any, Final

from md_export.engine.cache import Entry, default_root
from md_export.engine.keys import maker
from md_export.engine.perform import Task, files_before, perform
from md_export.engine.plan import Cost, ExportResult, Inputs, Step
from md_export.engine.shared_store import BackedCache, Store
from md_export.errors import ArtifactError, MissingExtraError, RuntimeFault
from md_export.system.memory import installed_bytes
from md_export.system.workspace import workspace
from md_export.targets.versions import tools_of

_CONNECT_S: Final = 10


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A ``distributed.Client`` of a scheduler with workers, which execute what this process sends them: name only a
    scheduler of your own.

    Raises:
        MissingExtraError: Dask is not installed.
        RuntimeFault: nobody answers at the address, or there are no workers.
    """
    for name in ("distributed", "fsspec"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"--dask needs {name}, which is not installed: pip install 'md-export[dask]'")
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
        yield client


def ask_each(client: Any, function: Callable[..., Any], *given: Any) -> dict[str, Any]:
    """What a function of a module answers on every worker, by the worker's address; RuntimeFault where one cannot."""
    try:
        found: dict[str, Any] = client.run(function, *given)
    except Exception as error:
        raise RuntimeFault(explain(error)) from error
    return found


def check_same(found: Mapping[str, Mapping[str, str]], here: Mapping[str, str]) -> None:
    """Raise RuntimeFault that names a worker whose versions, by what they are of, are not those of this process."""
    for worker, versions in sorted(found.items()):
        if text := difference(versions, here):
            raise RuntimeFault(f"the Dask worker {worker} {text}; install the same")


def difference(found: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The first thing that is of another version in ``found``; empty where all are the same."""
    for name, wanted in here.items():
        if found.get(name) != wanted:
            return f"has {name} {found.get(name)}, this is {wanted}"
    return ""


def version() -> dict[str, str]:
    """Of md-export, in the process that is asked."""
    from md_export import __version__

    return {"md-export": __version__}


def explain(error: BaseException, also: str = "") -> str:
    """What to tell the user of an exception that came from Dask; ``also`` is what workers need besides md-export."""
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return "a Dask worker died again and again, most likely for lack of memory: give each more, then run again"
    if isinstance(error, CancelledError):
        return "the Dask scheduler went away: start it again, then run the same command again"
    return (
        f"Dask failed with {type(error).__name__}: {str(error).strip()}; its scheduler and its workers need the same "
        f"md-export with the same extras{also}"
    )


# A worker of Dask may have several threads; the memory that a step may hold is one worker's.
_ONE_AT_A_TIME: Final = threading.Lock()
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class RemoteTask:
    """A step for a worker.

    Attributes:
        store: URL.
        inputs: by the name that the step knows them by, the key of each in the store and its path in that entry.
        most_bytes: memory that its processes may hold.
        targets, versions: :func:`versions` of these targets must be those here, or keys would lie.
    """

    step: Step
    store: str
    inputs: dict[str, tuple[str, str]]
    most_bytes: int
    targets: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class Worker:
    """What a worker says of itself; ``bytes`` of memory are its machine's."""

    host: str
    bytes: int
    versions: dict[str, str]


def describe(targets: tuple[str, ...]) -> Worker:
    """The process that is asked, as a worker."""
    return Worker(platform.node(), installed_bytes(), versions(targets))


def versions(targets: tuple[str, ...]) -> dict[str, str]:
    """All that every key of a plan for these targets depends on and that belongs to the process that is asked."""
    made = maker()
    found = {"md-export": made.pop("md-export"), "code of md-export": made.pop("code")[:12], **made}
    for target in (None, *targets):
        try:
            found |= tools_of(target)
        except PackageNotFoundError as error:
            found[error.name] = "missing"
    return found


def lacks(url: str, keys: list[str]) -> bool:
    """Whether the process that is asked does not find all of these entries in a store."""
    store = Store(url)
    return any(store.read(key) is None for key in keys)


def carry_out(task: RemoteTask) -> Cost:
    """What a worker of Dask executes; it may use the cores that Dask gave it."""
    from distributed import get_worker

    # Dask itself allows one, for its own threads.
    os.environ |= dict.fromkeys(_THREADS, str(get_worker().state.nthreads))
    return perform_there(task)


def perform_there(remote: RemoteTask, perform: Callable[[Task, BackedCache], Cost] = perform) -> Cost:
    """Carry a step out, unless that was done before: by a worker that died when its work was done, for one.

    Raises:
        RuntimeFault: this is another md-export, or the store does not answer.
        ArtifactError: the store lacks what the step needs.
        MdExportError: as :func:`md_export.engine.perform.perform`.
    """
    with _ONE_AT_A_TIME:
        if text := difference(versions(remote.targets), remote.versions):
            raise RuntimeFault(f"the Dask worker on {platform.node()} {text}; install the same")
        step, cache = remote.step, BackedCache(default_root(), Store(remote.store))
        needed = [_fetched(cache, key) for key in step.needs]
        made = cache.get(step.key)
        if made is not None and not (
            isinstance(made.result, ExportResult) and made.result.others != files_before(needed)
        ):
            cache.share(step.key)
            return Cost(0, 0.0)
        found = {name: cache.files(_fetched(cache, key).key) / within for name, (key, within) in remote.inputs.items()}
        inputs = Inputs(found.pop("checkpoint"), found.pop("golden", None), found)
        with workspace(cache.work) as work:
            return perform(Task(step, cache.root, work, inputs, remote.most_bytes), cache)


def _fetched(cache: BackedCache, key: str) -> Entry:
    damage: list[str] = []
    entry = cache.get(key, damage.append)
    if entry is None:
        why = damage[-1] if damage else f"the entry {key[:12]} is gone from the store {cache.store.url}"
        raise ArtifactError(f"{why}; run the same command again")
    return entry
