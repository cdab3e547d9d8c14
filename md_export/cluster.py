"""A Dask cluster: its scheduler is found, and its workers are asked whether they compute with what computes here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any, Final

from md_export.errors import MissingExtraError, RuntimeFault

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
