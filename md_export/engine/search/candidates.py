"""Noise of all modules in all forms: estimated for all, measured for the candidates that matter most to a choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from md_export.engine.search.frontier import Candidate, Module, Point, decibels
from md_export.engine.search.hutchinson import SampleRequest, sample
from md_export.engine.search.measurements import Pass, Sample, with_means
from md_export.engine.search.measuring import Count, Job, Journal, Name, measure_all
from md_export.engine.search.request import Budget
from md_export.engine.search.selection import choose
from md_export.engine.search.sensitivity import PassRequest, Probing, list_modules, measure
from md_export.engine.search.spread import Workers, spread

# Candidates that are measured by passes in each round, and rounds. Each measurement may change the choice.
_CANDIDATES: Final = 8
_ROUNDS: Final = 2


def estimated(
    on: Probing, directions: int, found: Workers, journal: Journal, count: Count = lambda *_: None
) -> tuple[Module, ...]:
    """List all modules with their candidates, and estimate the noise of each from some random directions.

    Raises:
        MdExportError: as for :func:`measure_all`.
    """
    (listed,) = [answer.value for answer in spread(list_modules, [on], found)]
    jobs = [Job(("direction", f"{number}"), "direction", SampleRequest(on, number)) for number in range(directions)]
    taken = measure_all(jobs, sample, found, journal, count)
    return with_means(listed, [one for one in taken if isinstance(one, Sample)])


def refined(
    modules: Sequence[Module],
    budget: Budget,
    on: Probing,
    found: Workers,
    journal: Journal,
    count: Count = lambda *_: None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Module, ...]:
    """Measure by passes the chosen candidates that add most to the noise, and choose again, a few times.

    These are the coarsest forms, where the estimate is furthest off: it is of the first order. A budget that names
    nothing but a score chooses nothing before a judge has seen artifacts, so all estimates stay.

    Raises:
        UsageError: no choice meets the budget.
        MdExportError: as for :func:`measure_all`.
    """
    passes: dict[Name, Pass] = {}
    for _ in range(_ROUNDS) if replace(budget, score=None) != Budget() else ():
        chosen = [one for one in noisiest(choose(modules, budget)) if name_of(*one) not in passes][:_CANDIDATES]
        if not chosen:
            break
        jobs = [Job(name_of(*one), one[0].component, _request(on, *one)) for one in chosen]
        taken = [one for one in measure_all(jobs, measure, found, journal, count) if isinstance(one, Pass)]
        progress(f"{len(taken)} candidates measured: {_compared(chosen, taken)}")
        passes |= {one.key: one for one in taken}
        modules = with_passes(modules, passes)
    return tuple(modules)


def noisiest(point: Point) -> list[tuple[Module, Candidate]]:
    """Return the modules of a choice with their candidates that are not float, by decreasing noise in the picture."""
    pairs = [pair for pair in zip(point.modules, point.chosen, strict=True) if not pair[1].form.is_float]
    return sorted(pairs, key=lambda pair: -pair[1].noise)


def name_of(module: Module, candidate: Candidate) -> Name:
    """Return the name of a candidate's measurement."""
    return module.component, module.path, candidate.form.label


def with_passes(modules: Sequence[Module], passes: dict[Name, Pass]) -> tuple[Module, ...]:
    """Replace estimates by measurements, and leave out forms whose measurement is NaN or infinite."""
    return tuple(
        replace(
            module,
            candidates=tuple(
                made for one in module.candidates for made in _measured(one, passes.get(name_of(module, one)))
            ),
        )
        for module in modules
    )


def _measured(candidate: Candidate, found: Pass | None) -> tuple[Candidate, ...]:
    if found is None:
        return (candidate,)
    if found.noise is None or found.own_noise is None:
        return ()
    return (replace(candidate, noise=found.noise, own_noise=found.own_noise),)


def _request(on: Probing, module: Module, candidate: Candidate) -> PassRequest:
    return PassRequest(on, module.component, module.path, candidate.form)


def _compared(chosen: Sequence[tuple[Module, Candidate]], passes: Sequence[Pass]) -> str:
    pairs = zip((one.noise for _, one in chosen), (one.noise for one in passes), strict=True)
    errors = [decibels(found) - decibels(noise) for noise, found in pairs if found]
    if not errors:
        return "none of them is finite"
    mean, most = math.fsum(errors) / len(errors), max(map(abs, errors))
    return f"{mean:+.1f} dB from the estimate on average, {most:.1f} dB at most"
