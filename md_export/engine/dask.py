"""Connect to a Dask cluster, and carry out steps on its workers.

A worker fetches what the step needs from the store, carries the step out and copies the result to the store. It shares
only the store with the client's machine; the checkpoint also comes from the store.
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
from pathlib import Path
from typing import Any, Final

from md_export.engine.cache import Cache, Entry, default_root
from md_export.engine.keys import maker
from md_export.engine.plan import Cost, ExportResult, Inputs, Step
from md_export.engine.running import files_before, perform
from md_export.engine.shared_store import BackedCache, Store
from md_export.errors import ArtifactError, MissingExtraError, RuntimeFault
from md_export.system.memory import installed_bytes
from md_export.system.workspace import workspace
from md_export.targets import tools_of

_CONNECT_S: Final = 10


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield a ``distributed.Client`` connected to a scheduler that has workers.

    The workers execute code that this process sends, so connect only to a scheduler that you control.

    Raises:
        MissingExtraError: Dask is not installed.
        RuntimeFault: no scheduler answers at the address, or it has no workers.
    """
    for name in ("distributed", "fsspec"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"--dask needs {name}, which is not installed: pip install 'md-export[dask]'")
    distributed: Any = importlib.import_module("distributed")
    try:
        # With an empty address, Client would start a cluster on this machine.
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
    """Call a module-level function on every worker, and return the results by the worker's address.

    Raises:
        RuntimeFault: the call failed on a worker.
    """
    try:
        found: dict[str, Any] = client.run(function, *given)
    except Exception as error:
        raise RuntimeFault(explain(error)) from error
    return found


def check_same(found: Mapping[str, Mapping[str, str]], here: Mapping[str, str]) -> None:
    """Check that the versions on all workers are those of this process; both map a name to its version.

    Raises:
        RuntimeFault: a version on a worker differs; the message names the worker.
    """
    for worker, versions in sorted(found.items()):
        if text := difference(versions, here):
            raise RuntimeFault(f"the Dask worker {worker} {text}; install the same version")


def difference(found: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Describe the first difference between the versions in ``found`` and ``here``; empty if there is no difference."""
    for name, wanted in here.items():
        if found.get(name) != wanted:
            return f"has {name} {found.get(name)}, this machine has {wanted}"
    return ""


def version() -> dict[str, str]:
    """Return the version of md-export in the process that runs this function."""
    from md_export import __version__

    return {"md-export": __version__}


def explain(error: BaseException, also: str = "") -> str:
    """Return the error message for an exception from Dask.

    ``also``: text appended to the message, about what workers need besides md-export.
    """
    from distributed.scheduler import KilledWorker

    if isinstance(error, KilledWorker):
        return "a Dask worker died repeatedly, most likely for lack of memory: give each worker more, then run again"
    if isinstance(error, CancelledError):
        return "the Dask scheduler went away: start it again, then run the same command again"
    return (
        f"Dask failed with {type(error).__name__}: {str(error).strip()}; its scheduler and its workers need the same "
        f"md-export with the same extras{also}"
    )


# A Dask worker can have several threads, but a step's memory limit is that of the whole worker.
_ONE_AT_A_TIME: Final = threading.Lock()
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class RemoteTask:
    """A step to run on a worker.

    Attributes:
        store: URL of the store.
        inputs: for each input, by the name that the step uses: its key in the store and its path in that entry.
        most_bytes: memory limit of the step's processes in bytes.
        targets: targets of the plan.
        versions: required result of :func:`versions` for ``targets`` on the worker; otherwise the cache keys would be
            wrong.
    """

    step: Step
    store: str
    inputs: dict[str, tuple[str, str]]
    most_bytes: int
    targets: tuple[str, ...]
    versions: dict[str, str]


@dataclass(frozen=True)
class Worker:
    """Description of a worker: its host, the host's memory in bytes, and the installed versions."""

    host: str
    bytes: int
    versions: dict[str, str]


def describe(targets: tuple[str, ...]) -> Worker:
    """Return the description of the process that runs this function, as a worker."""
    return Worker(platform.node(), installed_bytes(), versions(targets))


def versions(targets: tuple[str, ...]) -> dict[str, str]:
    """Return the versions in this process that the cache keys of a plan for ``targets`` depend on."""
    made = maker()
    found = {"md-export": made.pop("md-export"), "code of md-export": made.pop("code")[:12], **made}
    for target in (None, *targets):
        try:
            found |= tools_of(target)
        except PackageNotFoundError as error:
            found[error.name] = "missing"
    return found


def lacks(url: str, keys: list[str]) -> bool:
    """Return whether any of these entries is missing in the store, as seen by the process that runs this function."""
    store = Store(url)
    return any(store.read(key) is None for key in keys)


def carry_out(task: RemoteTask) -> Cost:
    """Carry out a step on a Dask worker, with as many threads as Dask assigned to the worker."""
    from distributed import get_worker

    # Dask sets these variables to 1 because it runs tasks in its own threads.
    os.environ |= dict.fromkeys(_THREADS, str(get_worker().state.nthreads))
    return perform_there(task)


def perform_there(remote: RemoteTask, perform: Callable[[Step, Cache, Path, Inputs, int], Cost] = perform) -> Cost:
    """Carry out a step and copy its result to the store, unless the result already exists.

    The result exists, for example, if a worker finished the step and died before it could report it.

    Raises:
        RuntimeFault: the versions on this worker differ from those of the client, or the store does not answer.
        ArtifactError: an entry that the step needs is missing in the store.
        MdExportError: as for :func:`md_export.engine.running.perform`.
    """
    with _ONE_AT_A_TIME:
        if text := difference(versions(remote.targets), remote.versions):
            raise RuntimeFault(f"the Dask worker on {platform.node()} {text}; install the same version")
        step, cache = remote.step, BackedCache(default_root(), Store(remote.store))
        needed = [_fetched(cache, key) for key in step.needs]
        made = cache.get(step.key)
        if made is not None and not (
            isinstance(made.result, ExportResult) and made.result.others != files_before(needed)
        ):
            cache.share(step.key)
            return Cost(0, 0.0)
        wanted = {"checkpoint", "golden", *(name for name, _ in step.request.loras)}
        found = {
            name: cache.files(_fetched(cache, key).key) / within
            for name, (key, within) in remote.inputs.items()
            if name in wanted
        }
        inputs = Inputs(found.pop("checkpoint"), found.pop("golden", None), found)
        with workspace(cache.work) as work:
            return perform(step, cache, work, inputs, remote.most_bytes)


def _fetched(cache: BackedCache, key: str) -> Entry:
    damage: list[str] = []
    entry = cache.get(key, damage.append)
    if entry is None:
        why = damage[-1] if damage else f"the entry {key[:12]} is gone from the store {cache.store.url}"
        raise ArtifactError(f"{why}; run the same command again")
    return entry
