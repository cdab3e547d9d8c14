"""The same results from one process, several, or a cluster; whatever stops a search, what it measured stays."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import md_export
from engine.search.toy import KEY, jobs, measure, surroundings
from md_export.engine import dask as cluster_module
from md_export.engine.search import spread
from md_export.engine.search.measuring import Line, TimeLeft, measure_all, open_journal
from md_export.engine.search.spread import Workers, dask_workers, local_workers, workers
from md_export.errors import CheckpointError, MissingExtraError, RuntimeFault
from md_export.report import progress
from md_export.system.terminal_text import spelled_time


def inline() -> Workers:
    return Workers(ThreadPoolExecutor(1), 1, lambda _: None)


def measured(path: Path, found: Workers, count: int = 30, **how: float | str) -> tuple[Line, ...]:
    with open_journal(path, KEY) as journal:
        return measure_all(jobs(count, **how), measure, found, journal)


def kept(path: Path) -> list[str]:
    with open_journal(path, KEY) as journal:
        return sorted(path for _, path, _ in journal.found)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A scheduler with two worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found:
        yield found.scheduler_address


def test_processes_measure_what_one_thread_does(tmp_path: Path) -> None:
    expected = measured(tmp_path / "inline.jsonl", inline())
    assert [one.key[1] for one in expected] == [f"{number}" for number in range(30)]
    with workers(2, None) as found:
        assert measured(tmp_path / "local.jsonl", found) == expected


def test_processes_share_the_cores_and_leave_interrupts_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    with local_workers(2) as found:
        (answer,) = spread.spread(surroundings, [{}], found)
    assert answer.value == (True, "3")


def test_a_cluster_measures_the_same(tmp_path: Path, cluster: str) -> None:
    with workers(None, cluster) as found:
        assert found.count == 2
        assert measured(tmp_path / "dask.jsonl", found) == measured(tmp_path / "inline.jsonl", inline())


def test_what_is_in_the_journal_is_not_measured_again(tmp_path: Path) -> None:
    path, told = tmp_path / "search.jsonl", []
    measured(path, inline(), 10)
    # Asked again, the first ten would raise.
    bad = [dataclasses.replace(job, request={"number": 0, "raises": 0}) for job in jobs(10)]
    with open_journal(path, KEY) as journal:
        found = measure_all([*bad, *jobs(14)[10:]], measure, inline(), journal, lambda *said: told.append(said))
    assert found == measured(tmp_path / "anew.jsonl", inline(), 14)
    assert [(done, total) for done, total, _ in told] == [(done, 14) for done in range(10, 15)]
    assert told[0][2] == "time left not known yet"
    assert told[-1][2] == "all measured"


def test_a_dead_process_is_one_error_and_its_results_stay(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    message = r"a worker process died, most likely for lack of memory.* \(7 of 8 measurements are kept in "
    with pytest.raises(RuntimeFault, match=message), local_workers(2) as found:
        measured(path, found, 8, dies=5, patience=30.0, journal=str(path), lines=8)
    assert kept(path) == ["0", "1", "2", "3", "4", "6", "7"]
    assert measured(path, inline(), 8) == measured(tmp_path / "anew.jsonl", inline(), 8)


@pytest.mark.slow
def test_a_dead_dask_worker_is_one_error_and_its_results_stay(tmp_path: Path, cluster: str) -> None:
    path = tmp_path / "search.jsonl"
    message = r"a Dask worker died repeatedly.* \(\d of 8 measurements are kept in "
    with pytest.raises(RuntimeFault, match=message), dask_workers(cluster) as found:
        measured(path, found, 8, dies=5, journal=str(path), lines=8)
    assert "5" not in kept(path)
    with dask_workers(cluster) as found:
        assert measured(path, found, 8) == measured(tmp_path / "anew.jsonl", inline(), 8)


def test_errors_of_a_measurement_keep_their_class(tmp_path: Path, cluster: str) -> None:
    for number, found in enumerate((local_workers(1), dask_workers(cluster))):
        with pytest.raises(CheckpointError, match="no weight 3"), found as entered:
            measured(tmp_path / f"{number}.jsonl", entered, 4, raises=3)


def test_what_is_no_measurement_is_not_written_down(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeFault, match=r"unet 2 int8: no measurement: noise: .* finite number \(2 of 4 measurements"
    ):
        measured(tmp_path / "search.jsonl", inline(), 4, nan=2)
    assert kept(tmp_path / "search.jsonl") == ["0", "1"]
    with pytest.raises(RuntimeFault, match=r"unet 3 int8: a worker measured unet 0 int8 instead"):
        measured(tmp_path / "search.jsonl", inline(), 4, other=3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_search_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    """The signal reaches the process alone, or, as from a terminal, all of its group; no worker outlives it."""
    path = tmp_path / "search.jsonl"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "engine.search.toy", str(path)]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_heeds_interrupts
    )
    wait_for(lambda: path.is_file() and path.read_bytes().count(b"\n") > 5)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, said = process.communicate(timeout=90)
    assert said.count(b"KeyboardInterrupt") == (number == signal.SIGINT), said.decode()
    wait_for(lambda: not members(process.pid))
    before = kept(path)
    assert 5 <= len(before) < 400
    expected = measured(tmp_path / "anew.jsonl", inline(), 20)
    assert measured(path, inline(), 20) == expected


def _heeds_interrupts() -> None:
    """What a shell runs in the background ignores them, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def members(group: int) -> list[int]:
    """Processes of a group, the dead that nobody has waited for aside."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                state, _, its_group = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:3]
                found += [int(entry.name)] if int(its_group) == group and state != "Z" else []
    return found


def wait_for(done: object, seconds: float = 90.0) -> None:
    assert callable(done)
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_dask_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "distributed" else object())
    with pytest.raises(MissingExtraError, match=r"pip install 'md-export\[dask\]'"), dask_workers("tcp://127.0.0.1:1"):
        pass


@pytest.fixture
def collected() -> Iterator[None]:
    """Clients that never connected go here, and not in a later test's event loop, which their end would block."""
    yield
    gc.collect()


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", ""])
def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 0.5)
    with pytest.raises(RuntimeFault, match="no Dask scheduler answers at"), dask_workers(address):
        pass


def test_a_cluster_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(cluster_module, "_CONNECT_S", 1)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as empty,
        pytest.raises(RuntimeFault, match="has no workers: start some with: dask worker tcp://"),
        dask_workers(empty.scheduler_address),
    ):
        pass


def test_workers_of_another_version(monkeypatch: pytest.MonkeyPatch, cluster: str) -> None:
    monkeypatch.setattr(md_export, "__version__", "99.0")
    with pytest.raises(RuntimeFault, match=r"has md-export .*, this machine has 99\.0; install"), dask_workers(cluster):
        pass


def test_time_left_is_of_what_is_left() -> None:
    left = TimeLeft(["unet"] * 4 + ["vae_decoder"] * 2, at_a_time=2)
    assert left.seconds is None
    left.finish("unet", 10.0)
    assert left.seconds == (3 * 10 + 2 * 10) / 2
    left.finish("vae_decoder", 40.0)
    assert left.seconds == (3 * 10 + 1 * 40) / 2
    for _ in range(3):
        left.finish("unet", 10.0)
    # One worker has nothing to do.
    assert left.seconds == 40
    assert left.text == "about 40 s left"
    left.finish("vae_decoder", 40.0)
    assert left.text == "all measured"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "1 s"), (40.2, "40 s"), (89.0, "89 s"), (91.0, "2 min"), (3000.0, "50 min"), (12_000.0, "3 h 20 min")],
)
def test_durations_are_spelled(seconds: float, text: str) -> None:
    assert spelled_time(seconds) == text


def test_lines_are_few_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.counting_to_stderr("measurements") as count:
        for done in range(101):
            count(done, 100, "about 5 s left")
    assert capsys.readouterr().err.splitlines() == [
        "0 of 100 measurements, about 5 s left",
        "100 of 100 measurements, about 5 s left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.counting_to_stderr("measurements") as count:
        count(31, 412, "about 5 min left")
    text = capsys.readouterr().err
    assert "31/412" in text
    assert "measurements, about 5 min left" in text
