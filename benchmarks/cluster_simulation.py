"""Simulation of a build on workers that share nothing but a store, event by event; for benchmarks/cluster.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from md_export.engine.plan import Step
from md_export.engine.schedule import Limits, Schedule

# SHA-256 in bytes per second: each use of a cache entry checks it, and each new entry is hashed.
HASHED: Final = 1.5e9


@dataclass(frozen=True)
class Work:
    """What a step does: seconds of its own, bytes of its result, and of each input that a worker fetches."""

    seconds: float
    made: int = 0
    inputs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """Bytes per second of each machine's link and of the store, which all transfers at a time share equally."""

    link: float
    store: float


@dataclass
class Replay:
    """A simulated build: times in seconds after its begin.

    Attributes:
        ends: time at which each step's result was there, by key; those that cannot run are missing.
        worked: seconds of the steps themselves, without transfers.
        moved: bytes between store and machines.
        placing: seconds in which the client copied exports; it starts no steps meanwhile.
    """

    ends: dict[str, float] = field(default_factory=dict)
    makespan: float = 0.0
    worked: float = 0.0
    moved: float = 0.0
    placing: float = 0.0


# Bytes or seconds that are left, and whether they are bytes on the network.
Phase = tuple[bool, float]


def simulate(steps: Sequence[Step], works: Mapping[str, Work], limits: Limits, network: Network) -> Replay:
    """Replay a build event by event; each worker takes one step at a time and keeps what it fetched and made."""
    schedule, replay = Schedule(steps, limits), Replay()
    idle, had = deque(range(limits.jobs)), [set[str]() for _ in range(limits.jobs + 1)]
    client = limits.jobs
    running: dict[int, tuple[Step, deque[Phase]]] = {}
    done, now = deque[Step](), 0.0

    def begin(machine: int, step: Step, wanted: Mapping[str, int], seconds: float, made: int = 0) -> None:
        """Fetch what the machine lacks, work, and put what was made into the store."""
        lacking = sum(size for name, size in wanted.items() if name not in had[machine])
        had[machine] |= {*wanted, step.key}
        replay.moved += lacking + made
        phases = (True, lacking), (False, seconds), (True, made)
        running[machine] = (step, deque(phase for phase in phases if phase[1] > 0))

    while True:
        while done and client not in running:
            step = done.popleft()
            schedule.end(step)
            replay.ends[step.key] = now
            if step.kind == "export":
                files = {need: works[need].made for need in step.needs if need in works}
                moved = replay.moved
                begin(client, step, files, seconds := 2 * sum(files.values()) / HASHED)
                replay.placing += seconds + (replay.moved - moved) / network.link
        while client not in running and (started := schedule.start()) is not None:
            step, own = started[0], works[started[0].key]
            wanted = {**own.inputs, **{need: works[need].made for need in step.needs if need in works}}
            replay.worked += own.seconds
            begin(idle.popleft(), step, wanted, own.seconds + (sum(wanted.values()) + own.made) / HASHED, own.made)
        if not running:
            replay.makespan = now
            return replay
        transfers = sum(bool(phases) and phases[0][0] for _, phases in running.values())
        speed = min(network.link, network.store / max(1, transfers))
        passed = min(
            phases[0][1] / (speed if phases[0][0] else 1.0) if phases else 0.0 for _, phases in running.values()
        )
        now += passed
        for machine, (step, phases) in list(running.items()):
            if phases:
                over_network, left = phases.popleft()
                left -= passed * (speed if over_network else 1.0)
                if left > 1e-6:
                    phases.appendleft((over_network, left))
            if not phases:
                del running[machine]
                if machine != client:
                    idle.append(machine)
                    done.append(step)
