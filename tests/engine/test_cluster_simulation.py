"""The simulator of benchmarks/cluster.py on tiny plans whose times are known."""

from __future__ import annotations

from typing import Final

import pytest

from cluster_simulation import HASHED, Network, Replay, Work, simulate
from engine.toy import step_of
from md_export.engine.plan import Cost, Step
from md_export.engine.schedule import Limits

GB: Final = 1_000_000_000
# Transfers take no time.
FREE: Final = Network(1e30, 1e30)


def leaves(count: int, *needs: Step, size: int = 0) -> list[Step]:
    keys = tuple(step.key for step in needs)
    return [step_of("artifact", f"leaf-{number}", keys, Cost(size, 0)) for number in range(count)]


def run(steps: list[Step], workers: int, seconds: float = 2, network: Network = FREE, **work: object) -> Replay:
    works = {step.key: Work(seconds, **work) for step in steps}  # type: ignore[arg-type]
    return simulate(steps, works, Limits(workers, 8 * GB, apart=True), network)


def test_a_chain_gains_nothing_from_workers() -> None:
    first = step_of("golden", "first")
    second = step_of("artifact", "second", (first.key,))
    steps = [first, second, step_of("artifact", "third", (first.key, second.key))]
    for workers in (1, 2, 64):
        found = run(steps, workers)
        assert [found.ends[step.key] for step in steps] == [2, 4, 6]
        assert (found.makespan, found.worked, found.moved) == (6, 6, 0)
    assert run(leaves(3), 64).makespan == 2, "without needs"


@pytest.mark.parametrize(("workers", "makespan"), [(1, 18), (3, 8), (4, 6), (8, 4), (64, 4)])
def test_a_fan_out_scales_to_its_leaves(workers: int, makespan: float) -> None:
    root = step_of("golden", "root")
    assert run([root, *leaves(8, root)], workers).makespan == makespan
    if workers == 64:
        assert run([root, *leaves(8)], workers).makespan == 2, "without the need that they share"


def test_memory_bounds_what_runs_at_a_time() -> None:
    steps = leaves(4, size=3 * GB)
    works = {step.key: Work(2) for step in steps}
    for limits, makespan in ((Limits(4, 6 * GB), 4), (Limits(4, 5 * GB), 8), (Limits(4, 6 * GB, apart=True), 2)):
        assert simulate(steps, works, limits, FREE).makespan == makespan
    large = simulate([*steps, step_of("golden", "large", (), Cost(7 * GB, 0))], works, Limits(4, 6 * GB), FREE)
    assert set(large.ends) == set(works), "the large one is not started"


@pytest.mark.parametrize(("workers", "store", "makespan", "moved"), [(2, 100, 4, 20), (2, 5, 6, 20), (1, 100, 6, 10)])
def test_inputs_are_fetched_once_by_each_worker(workers: int, store: float, makespan: float, moved: int) -> None:
    """10 bytes at 5 bytes a second, by the link or by the store, which two workers share."""
    found = run(leaves(2), workers, network=Network(5, store), inputs={"checkpoint": 10})
    assert found.makespan == pytest.approx(makespan)
    assert found.moved == moved


@pytest.mark.parametrize(("kind", "placing", "makespan"), [("export", 2, 9), ("artifact", 0, 7)])
def test_the_client_starts_nothing_while_it_copies_an_export(kind: str, placing: float, makespan: float) -> None:
    """2 + 1 s to make and hash a part, 1 + 1 s to hash and verify it, 2 s in which the client reads and writes it."""
    part, other = leaves(2)
    last = step_of(kind, "last", (part.key,))
    works = {part.key: Work(2, int(HASHED)), last.key: Work(1), other.key: Work(2)}
    found = simulate([part, last, other], works, Limits(1, 8 * GB, apart=True), FREE)
    assert found.ends[last.key] == pytest.approx(5)
    assert found.placing == pytest.approx(placing)
    assert found.makespan == pytest.approx(makespan)
