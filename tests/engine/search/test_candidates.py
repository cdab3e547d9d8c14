"""The candidates that are measured by passes, and what becomes of their estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.search.test_measuring import inline
from engine.search.toy import KEY
from md_export.engine.search import candidates
from md_export.engine.search.candidates import noisiest, refined, with_passes
from md_export.engine.search.frontier import Candidate, Form, Module
from md_export.engine.search.measurements import Pass
from md_export.engine.search.measuring import open_journal
from md_export.engine.search.request import Budget
from md_export.engine.search.selection import choose
from md_export.engine.search.sensitivity import PassRequest

INT4, INT8, FLOAT = Form("int4"), Form("int8"), Form("float32")


def module(path: str, noise: float) -> Module:
    found = (Candidate(INT4, 50, noise, noise), Candidate(INT8, 100, noise / 100, noise / 100))
    return Module("unet", path, 100, (*found, Candidate(FLOAT, 400, 0.0, 0.0)))


MODULES = tuple(module(f"{number:02}", 1e-3 * (number + 1)) for number in range(20))


def passed(one: Module, form: Form, noise: float | None) -> dict[tuple[str, ...], Pass]:
    found = Pass(one.component, one.path, form, noise, noise)
    return {found.key: found}


def test_measurements_replace_estimates() -> None:
    found = with_passes(MODULES, passed(MODULES[3], INT4, 0.5))
    assert [one for one in found if one not in MODULES] == [found[3]]
    assert [one.noise for one in found[3].candidates] == [0.5, MODULES[3].candidates[1].noise, 0.0]


def test_a_form_that_breaks_the_picture_is_left_out() -> None:
    found = with_passes(MODULES, passed(MODULES[3], INT4, None))
    assert [one.form for one in found[3].candidates] == [INT8, FLOAT]


def test_the_noisiest_are_no_floats() -> None:
    point = choose(MODULES, Budget(bits=8))
    order = [one for _, one in noisiest(point)]
    assert order == sorted(order, key=lambda one: -one.noise)
    assert order
    assert not any(one.form.is_float for one in order)


def test_what_the_estimate_took_for_small_is_measured_and_chosen_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Module 12 is a thousand times as sensitive to int4 as it was estimated: it is measured, and gets int8."""
    asked: list[PassRequest] = []

    def measure(request: PassRequest) -> Pass:
        asked.append(request)
        (estimate,) = [one.noise for one in MODULES[int(request.path)].candidates if one.form == request.form]
        noise = estimate * (1000 if (request.path, request.form) == ("12", INT4) else 1)
        return Pass(request.component, request.path, request.form, noise, noise)

    monkeypatch.setattr(candidates, "measure", measure)
    told: list[str] = []
    budget = Budget(bits=5.5)
    before = {one.path: form.form for one, form in zip(MODULES, choose(MODULES, budget).chosen, strict=True)}
    assert before["12"] == INT4
    on: Any = None
    with open_journal(tmp_path / "journal", KEY) as journal:
        found = refined(MODULES, budget, on, inline(), journal, progress=told.append)
    after = {one.path: form.form for one, form in zip(found, choose(found, budget).chosen, strict=True)}
    assert after["12"] == INT8
    assert len(asked) == len({(one.path, one.form) for one in asked}) == 16
    assert told[0] == "8 candidates measured: -3.8 dB from the estimate on average, 30.0 dB at most"
    assert told[1].endswith(": +0.0 dB from the estimate on average, 0.0 dB at most")
    with open_journal(tmp_path / "journal", KEY) as journal:
        assert refined(MODULES, budget, on, inline(), journal) == found
    assert len(asked) == 16, "what is in the journal is not measured again"
