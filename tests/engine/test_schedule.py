"""Steps side by side: order, number, memory, and what a failure leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from engine.toy import Quiet, step_of
from md_export.engine.plan import Cost, Step
from md_export.engine.running import run_steps
from md_export.engine.schedule import Failure, Limits, longest_chains
from md_export.errors import ConversionError

GB = 1_000_000_000


class Recorder:
    """Carries steps out and knows how many there were at a time, and what they were given."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.failing = failing
        self.lock = threading.Lock()
        self.now: dict[str, int] = {}
        self.order: list[str] = []
        self.most_at_a_time = self.most_bytes = 0

    def __call__(self, step: Step, given: int) -> Cost:
        with self.lock:
            self.now[step.label] = given
            self.order.append(step.label)
            self.most_at_a_time = max(self.most_at_a_time, len(self.now))
            self.most_bytes = max(self.most_bytes, sum(self.now.values()))
        time.sleep(0.01)
        with self.lock:
            del self.now[step.label]
        if step.label in self.failing:
            raise ConversionError(f"{step.label} is broken")
        return step.cost


def chain(*sizes: float) -> list[Step]:
    return [step_of("artifact", f"s{number}", (), Cost(int(size * GB), 1)) for number, size in enumerate(sizes)]


def run(steps: list[Step], recorder: Recorder, jobs: int = 2, gigabytes: float = 8) -> tuple[Failure, ...]:
    with ThreadPoolExecutor(jobs) as executor:
        return run_steps(
            steps, lambda *given: executor.submit(recorder, *given), Limits(jobs, int(gigabytes * GB)), Quiet()
        )


@pytest.mark.parametrize(("jobs", "gigabytes", "at_a_time"), [(3, 8, 3), (2, 8, 2), (1, 8, 1), (3, 5, 2), (3, 3, 1)])
def test_number_and_memory_are_kept(jobs: int, gigabytes: float, at_a_time: int) -> None:
    recorder = Recorder()
    assert run(chain(2, 2, 2, 2, 2, 2), recorder, jobs, gigabytes) == ()
    assert recorder.most_at_a_time == at_a_time
    assert recorder.most_bytes <= gigabytes * GB
    assert sorted(recorder.order) == [f"s{number}" for number in range(6)]


def test_a_step_alone_may_have_everything() -> None:
    recorder = Recorder()
    run(chain(1), recorder, jobs=1, gigabytes=8)
    assert recorder.most_bytes == 8 * GB


def test_machines_apart_share_no_memory() -> None:
    recorder = Recorder()
    with ThreadPoolExecutor(2) as executor:
        limits = Limits(2, 5 * GB, apart=True)
        failures = run_steps(chain(4, 3, 6), lambda *given: executor.submit(recorder, *given), limits, Quiet())
    assert (recorder.most_at_a_time, recorder.most_bytes) == (2, 10 * GB)
    assert ["give --max-memory 6G" in one.reason for one in failures] == [True]


@pytest.mark.parametrize(
    ("apart", "order"),
    [
        (True, ["golden", "long", "late", "last", "short", "first"]),
        (False, ["golden", "short", "first", "long", "late", "last"]),
    ],
)
def test_the_longest_chain_starts_first_on_workers(apart: bool, order: list[str]) -> None:
    """``short`` and its export take 2 s, ``long`` and its followers 7 s. One machine keeps the order of the plan."""
    golden = step_of("golden", "golden", (), Cost(GB, 1))
    short, long = (
        step_of("artifact", name, (golden.key,), Cost(GB, time)) for name, time in (("short", 1), ("long", 1))
    )
    first = step_of("export", "first", (short.key,), Cost(GB, 1))
    late = step_of("artifact", "late", (long.key,), Cost(GB, 3))
    last = step_of("export", "last", (late.key,), Cost(GB, 3))
    steps, recorder = [golden, short, first, long, late, last], Recorder()
    with ThreadPoolExecutor(1) as executor:
        run_steps(steps, lambda *given: executor.submit(recorder, *given), Limits(1, 8 * GB, apart), Quiet())
    assert recorder.order == order
    assert longest_chains(steps) == {golden.key: 8, short.key: 2, first.key: 1, long.key: 7, late.key: 6, last.key: 3}


def test_a_small_step_passes_a_large_one_that_must_wait() -> None:
    recorder = Recorder()
    run(chain(5, 5, 1), recorder, jobs=2, gigabytes=6)
    assert recorder.order == ["s0", "s2", "s1"]


def test_steps_wait_for_what_they_need() -> None:
    first = step_of("golden", "first")
    second = step_of("artifact", "second", (first.key,))
    third = step_of("export", "third", (first.key, second.key))
    recorder = Recorder()
    assert run([first, second, third], recorder, jobs=3) == ()
    assert recorder.order == ["first", "second", "third"]
    assert recorder.most_at_a_time == 1


def test_needs_that_are_no_steps_are_met() -> None:
    recorder = Recorder()
    assert run([step_of("artifact", "a", ("0" * 64,))], recorder) == ()
    assert recorder.order == ["a"]


def test_a_failure_leaves_the_others_alone() -> None:
    golden = step_of("golden", "golden")
    good, bad = (step_of("artifact", name, (golden.key,)) for name in ("good", "bad"))
    after = step_of("export", "after", (bad.key,))
    last = step_of("export", "last", (after.key,))
    recorder = Recorder(failing=("bad",))
    failures = run([golden, bad, after, last, good], recorder, jobs=1)
    assert recorder.order == ["golden", "bad", "good"]
    assert [(one.step.label, one.reason) for one in failures] == [
        ("bad", "bad is broken"),
        ("after", "not started, because it needs bad"),
        ("last", "not started, because it needs after"),
    ]
    assert [one.follows for one in failures] == [False, True, True]
    assert [type(one.error) for one in failures] == [ConversionError, type(None), type(None)]


def test_what_cannot_fit_is_not_started_and_says_what_would_do() -> None:
    recorder = Recorder()
    failures = run(chain(8.43, 1), recorder, gigabytes=4)
    assert recorder.order == ["s1"]
    (failure,) = failures
    assert "needs about 8.4 GB" in failure.reason
    assert "the limit is 4.0 GB" in failure.reason
    assert "give --max-memory 8.5G" in failure.reason
    assert run(chain(8.43), recorder, gigabytes=8.5) == ()


def test_a_large_plan_is_ordered_in_no_time() -> None:
    """Each step used to look at all others that wait: minutes for so many."""
    golden = step_of("golden", "golden")
    parts = [step_of("artifact", f"part-{number}", (golden.key,)) for number in range(3000)]
    exports = [step_of("export", f"export-{number}", (golden.key, part.key)) for number, part in enumerate(parts)]
    order: list[str] = []

    def begin(step: Step, given: int) -> Future[Cost]:
        assert given == 8 * GB
        order.append(step.label)
        future = Future[Cost]()
        future.set_result(step.cost)
        return future

    started = time.process_time()
    assert run_steps([golden, *parts, *exports], begin, Limits(2, 8 * GB, apart=True), Quiet()) == ()
    assert time.process_time() - started < 10
    assert order == [step.label for step in (golden, *parts, *exports)]


def test_what_nobody_foresaw_is_raised() -> None:
    broken: Callable[[Step, int], Cost] = lambda step, given: Cost(1 // (given - given), 0)  # noqa: E731, ARG005
    with ThreadPoolExecutor(1) as executor, pytest.raises(ZeroDivisionError):
        run_steps(chain(1), lambda *given: executor.submit(broken, *given), Limits(1, GB * 2), Quiet())
