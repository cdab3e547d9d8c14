"""The bar of a build: it moves at every tick, whatever the predictions were, and says what is being done."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from md_export.engine.plan import CalibrationRequest, Cost, Step
from md_export.engine.running import Job, said_in
from md_export.engine.schedule import Limits
from md_export.report.progress import _Teller, left_of
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

REQUEST = CalibrationRequest(load_recipe(builtin_recipe("onnx", "fp16")), (), "")


@dataclass
class Bar:
    """What rich's bar is told."""

    shares: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    console: Bar | None = None

    def add_task(self, text: str, total: float | None) -> int:
        del text, total
        self.console = self
        return 0

    def print(self, text: str, soft_wrap: bool) -> None:
        del text, soft_wrap

    def update(
        self, task: int, total: float | None = None, completed: float | None = None, description: str = ""
    ) -> None:
        del task, total
        if completed is not None:
            self.shares.append(completed)
            self.texts.append(description)


def watched(monkeypatch: pytest.MonkeyPatch, predicted: list[float], taken: list[float]) -> Bar:
    """A bar during steps, one after another, with a tick every half second."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    steps = [Step(str(n), f"step {n}", (), REQUEST, "", Cost(0, seconds)) for n, seconds in enumerate(predicted)]
    bar = Bar()
    teller = _Teller(bar)
    teller.planned(tuple(steps), (), Limits(1, 1))
    for step, seconds in zip(steps, taken, strict=True):
        teller.started(step)
        teller.doing(step.key, "converting" if now else "")
        for _ in range(round(2 * seconds)):
            now += 0.5
            teller.tick()
        teller.finished(step, Cost(0, seconds))
    return bar


@pytest.mark.parametrize("taken", [[8.0, 20.0, 4.0], [1.0, 2.0, 1.0], [80.0, 200.0, 40.0]])
def test_the_bar_moves_at_every_tick_and_never_back(monkeypatch: pytest.MonkeyPatch, taken: list[float]) -> None:
    """Steps that take what was predicted, an eighth of it, and ten times as much."""
    shares = watched(monkeypatch, [8.0, 20.0, 4.0], taken).shares
    assert all(after > before for before, after in itertools.pairwise(shares))
    assert shares[0] > 0 and shares[-1] <= 1


def test_a_right_prediction_is_a_straight_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = watched(monkeypatch, [8.0, 20.0, 4.0], [8.0, 20.0, 4.0]).shares
    assert shares[len(shares) // 2] == pytest.approx(0.5, abs=0.05)
    # Predictions that are all ten times too short show too much: the test above alone would accept any curve.
    assert watched(monkeypatch, [0.8, 2.0, 0.4], [8.0, 20.0, 4.0]).shares[len(shares) // 2] > 0.6


def test_what_is_left_of_a_step_never_ends() -> None:
    assert left_of(10.0, 4.0) == 6.0
    late = [left_of(10.0, elapsed) for elapsed in (8.0, 10.0, 20.0, 100.0)]
    assert late == sorted(late, reverse=True) and late[-1] > 0


def test_the_line_says_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = watched(monkeypatch, [1.0, 1.0], [1.0, 1.0]).texts
    assert texts[0] == "about 2 s left, 0 of 2 steps  step 0 (loading libraries)"
    assert texts[-1].endswith("1 of 2 steps  step 1 (converting)")


def test_a_step_says_what_it_does_beside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    job = Job(REQUEST, None, tmp_path / "key", {}, {})  # type: ignore[arg-type]
    assert said_in(job.folder) == ""
    job.tell("golden case 1 of 4")
    assert said_in(job.folder) == "golden case 1 of 4"
    assert list(job.folder.iterdir()) == []
