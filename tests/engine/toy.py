"""A build whose steps write a few bytes slowly: all of the road but planning and the work itself.

As a program: ``python toy.py FOLDER KILLS SEED`` builds again and again and kills the build at random moments.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Final
from unittest.mock import patch

from md_export.engine import dask, executors
from md_export.engine import export as run
from md_export.engine.cache import Cache
from md_export.engine.dask import RemoteTask, perform_there
from md_export.engine.export import build
from md_export.engine.keys import key_of
from md_export.engine.placing import Outcome
from md_export.engine.plan import (
    ArtifactRequest,
    ArtifactResult,
    CasesResult,
    Cost,
    ExportPlan,
    ExportRequest,
    ExportResult,
    GoldenRequest,
    Inputs,
    Plan,
    Request,
    Result,
    Step,
)
from md_export.engine.request import BuildRequest
from md_export.engine.running import Listener
from md_export.engine.schedule import Failure, Limits
from md_export.parity.verdict import Verdict
from md_export.spec.artifact import ArtifactEntry, Measured
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.system.files import sha256_of

COST: Final = Cost(1000, 1.0)
_PIECES: Final = 4
_RECIPE: Final = load_recipe(builtin_recipe("onnx", "fp16"))
_VERDICT: Final = Verdict("onnx", "toy", 0, ())


class Quiet(Listener):
    """Listens to a build and keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ran: list[str] = []
        self.failures: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def planned(self, steps: tuple[Step, ...], cached: tuple[Step, ...], limits: Limits) -> None:
        self.lines.append(f"{len(steps)} steps, {len(cached)} cached, {limits.jobs} jobs")

    def placed(self, folder: Path) -> None:
        self.lines.append(f"{folder.name} placed")

    def started(self, step: Step) -> None:
        self.ran.append(step.label)

    def failed(self, failure: Failure) -> None:
        self.failures.append(f"{failure.step.label}: {failure.reason}")


def step_of(kind: str, label: str, needs: tuple[str, ...] = (), cost: Cost = COST) -> Step:
    """A step whose key follows from its label."""
    requests: dict[str, Request] = {
        "golden": GoldenRequest(_RECIPE, ()),
        "artifact": ArtifactRequest(_RECIPE, (), label, {}, "", None),
        "export": ExportRequest(_RECIPE, (), "", needs),
    }
    return Step(key_of({"label": label}), label, needs, requests[kind], key_of({"alike": label}), cost)


def toy_plan(exports: int = 3) -> Plan:
    """Golden cases that all share, and two artifacts an export, of which each shares one with the next."""
    golden = step_of("golden", "golden")
    parts = [step_of("artifact", f"part-{number}", (golden.key,)) for number in range(exports + 1)]
    last = [
        step_of("export", f"export-{number}", (golden.key, parts[number].key, parts[number + 1].key))
        for number in range(exports)
    ]
    plans = tuple(ExportPlan(step.label, "onnx", step.key, 1000) for step in last)
    return Plan((golden, *parts, *last), plans)


def toy_perform(
    step: Step, cache: Cache, work: Path, inputs: Inputs, most_bytes: int, rejected: Path | None = None
) -> Cost:
    """Write two files, a piece at a time, and keep them."""
    del inputs, most_bytes, rejected
    folder = work / step.key
    folder.mkdir()
    names = ("manifest.json", "more/notes.txt") if step.kind == "export" else (f"{step.label}/a", f"{step.label}/b")
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as stream:
            for piece in range(_PIECES):
                stream.write(sha256(f"{step.key} {name} {piece}".encode()).digest() * 300)
                stream.flush()
                time.sleep(0.002)
    needed = [cache.require(key) for key in step.needs]
    others = {name: file.sha256 for entry in needed for name, file in entry.files.items()}
    made = ArtifactEntry(step.label, "", "", 0, "", "", {}, {}, (), (), (), Measured(0.0, 0))
    results: dict[str, Result] = {
        "golden": CasesResult(),
        "artifact": ArtifactResult(made),
        "export": ExportResult(_VERDICT, others=others),
    }
    cache.put(step.key, step.kind, step.label, folder, results[step.kind])
    return COST


def toy_there(task: RemoteTask) -> Cost:
    """What a worker of Dask executes. It reads the checkpoint; and where a file ``hold`` asks for it, the first worker
    that comes to that step leaves its number there and is never done."""
    return perform_there(task, _toy_perform_there)


def _toy_perform_there(step: Step, cache: Cache, work: Path, inputs: Inputs, most_bytes: int) -> Cost:
    hold = Path(os.environ["TOY_HOLD"])
    assert (inputs.checkpoint / "unet" / "weights").read_text() == "weights"
    if hold.is_file() and hold.read_text() == step.label:
        hold.write_text(str(os.getpid()))
        time.sleep(1000)
    return toy_perform(step, cache, work, inputs, most_bytes)


def toy_build(folder: Path, listener: Quiet, plan: Plan | None = None, **where: str | None) -> Outcome:
    """Build in ``folder/out`` with the cache ``folder/cache``; ``where``: dask, store."""
    known = plan or toy_plan()
    request = BuildRequest((), folder, folder / "out", folder / "cache", jobs=2, **where)  # type: ignore[arg-type]
    with (
        patch.dict(vars(run), {"planned": lambda *_: known}),
        patch.dict(vars(executors), {"perform": toy_perform}),
        patch.dict(vars(dask), {"carry_out": toy_there}),
    ):
        return build(request, listener)


def sound(folder: Path, whole: dict[str, str]) -> str:
    """What is wrong with the cache or with a folder of an export; empty where everything is whole."""
    cache, damaged = Cache(folder / "cache"), Quiet()
    for entry in (folder / "cache" / "entries").glob("*"):
        if cache.get(entry.name, damaged.line) is None:
            return f"half an entry: {damaged.lines}"
    for export in (folder / "out").glob("export-*"):
        if sha256_of(export) != whole[export.name]:
            return f"half an export: {export}"
    return ""


def main(folder: Path, kills: int, seed: int) -> None:
    """Kill so many builds, each of which goes on where the last one was; print what came of it."""
    assert toy_build(folder / "whole", Quiet()).failures == ()
    whole = {export.name: sha256_of(export) for export in (folder / "whole" / "out").glob("export-*")}
    chance, started, killed, ended = random.Random(seed), time.perf_counter(), 0, 0  # noqa: S311
    toy_build(folder / "timed", Quiet())
    longest = time.perf_counter() - started
    while killed < kills:
        process = os.fork()
        if process == 0:
            failures = toy_build(folder / "x", Quiet()).failures
            os._exit(1 if failures else 0)
        time.sleep(chance.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        fault = sound(folder / "x", whole)
        assert not fault, f"after {killed} kills, seed {seed}: {fault}"
        killed += os.WIFSIGNALED(status)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert len(list((folder / "x" / "out").glob("export-*"))) == len(whole)
            ended += 1
            shutil.rmtree(folder / "x")
    assert toy_build(folder / "x", Quiet()).failures == ()
    assert {one.name: sha256_of(one) for one in (folder / "x" / "out").glob("export-*")} == whole
    left = [*(folder / "x" / "out").glob(".md-export-*"), *(folder / "x" / "cache" / "work").glob("*")]
    print(f"killed {killed}, ended {ended}, left behind {len(left)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
