"""THE map of a search: estimate every module, choose, rehearse in torch, build, compare the build with the budget."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export import __version__
from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.engine.export import cases, export
from md_export.engine.request import Resources
from md_export.engine.search.candidates import estimated, refined
from md_export.engine.search.frontier import Base, Module, Point, curve, point_of, uniform
from md_export.engine.search.measuring import Count, Key, open_journal
from md_export.engine.search.quality import (
    Built,
    Quality,
    Rehearsal,
    build,
    judged,
    next_aim,
    rehearse_request,
    sealed,
    tries,
)
from md_export.engine.search.request import STARTS, Budget, SearchRequest, starting_recipe
from md_export.engine.search.results import TRADE_OFF, Figures, TradeOff, chosen_recipe, figures_of, recipe_toml
from md_export.engine.search.selection import choose, first_passing
from md_export.engine.search.sensitivity import Probing
from md_export.engine.search.spread import Workers, spread, workers
from md_export.errors import ParityError, UsageError
from md_export.models.families import family_of
from md_export.parity.golden.folder import INDEX, write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.spec.recipe import Recipe
from md_export.system.files import refuse_existing, sha256_of, staging
from md_export.system.workspace import scratch_folder
from md_export.targets import tools_of

ARTIFACTS: Final = "artifacts"
RECIPE: Final = "recipe.toml"
CURVE: Final = "curve.json"
_TRIES: Final = ".tries"
_MOST_REHEARSALS: Final = 6
_MOST_BUILDS: Final = 3
# Picture qualities in decibels whose choices are scored by the judge.
_JUDGED_DB: Final = (16.0, 20.0, 24.0, 28.0, 32.0, 36.0, 40.0, 44.0, 48.0)

Progress = Callable[[str], None]


def search(request: SearchRequest, count: Count, progress: Progress = lambda _: None) -> TradeOff:
    """Find the forms of all modules under the request's budget; ``request.out`` appears whole or not at all.

    Measurements are kept in the request's journal, by default beside ``request.out``, and can be reused for any budget.

    Raises:
        UsageError: no choice meets the budget.
        ParityError: all builds missed the budget, including those with a corrected aim.
        MdExportError: measuring or exporting failed.
    """
    refuse_existing(request.out)
    checkpoint = open_checkpoint(request.checkpoint)
    checkpoint.check()
    recipe = starting_recipe(request).completed(checkpoint.components)
    with scratch_folder() as scratch, staging(request.out) as folder:
        resources = request.resources or Resources()
        if resources.cache is None:
            resources = dataclasses.replace(resources, cache=folder / _TRIES / "cache")
        ground = _prepare(request, recipe, checkpoint.at(recipe.variant), scratch, resources, progress)
        with _measured(ground, count) as (modules, rehearse):
            aim = request.budget if request.budget.score is not None else _rehearsed(request.budget, modules, rehearse)
        builder = _Builder(ground, modules, folder / _TRIES)
        if request.judge is not None and request.budget.score is not None:
            point, built = builder.judged(request.judge, request.budget.score)
        else:
            point, built = builder.settled(aim)
        found = builder.sealed(point, built, folder / ARTIFACTS)
        shutil.rmtree(folder / _TRIES)
        result = _trade_off(request.budget, request.target, modules, builder.base, point, built)
        notes = (
            f"Found by md-export search for: {request.budget.spelled}.",
            "Thresholds: the budget's, else measured.",
        )
        (folder / RECIPE).write_text(recipe_toml(found, notes), encoding="utf-8")
        (folder / CURVE).write_bytes(TRADE_OFF.dump_json(result, indent=2) + b"\n")
    return result


@dataclass(frozen=True)
class _Ground:
    """Inputs of one search.

    Attributes:
        recipe: recipe to start from.
        given: folder of golden cases from the request, or made from its prompts; None if it has neither.
        golden: folder of the golden cases.
        cases: folder of the calibration cases; None: every other golden case is used.
        resources: resources for builds, with a cache.
    """

    request: SearchRequest
    recipe: Recipe
    checkpoint: Checkpoint
    given: Path | None
    golden: Path
    cases: Path | None
    resources: Resources
    progress: Progress

    @property
    def components(self) -> tuple[str, ...]:
        """Components to choose forms for."""
        return tuple(self.request.components or self.recipe.components)


def _prepare(
    request: SearchRequest,
    recipe: Recipe,
    checkpoint: Checkpoint,
    scratch: Path,
    resources: Resources,
    progress: Progress,
) -> _Ground:
    given = request.golden
    if request.prompts:
        given = scratch / "prompts"
        given.mkdir()
        write_golden(golden_source(checkpoint), [(prompt, 0) for prompt in request.prompts], given, progress)
    golden, made = cases(recipe, checkpoint.root, scratch, given, progress, resources)
    return _Ground(request, recipe, checkpoint, given, golden, made, resources, progress)


Rehearse = Callable[[Point], Quality]


@contextmanager
def _measured(ground: _Ground, count: Count) -> Iterator[tuple[tuple[Module, ...], Rehearse]]:
    """Yield all modules with their noise, and a function that rehearses a choice in torch, on workers that are kept."""
    request, made = ground.request, ground.cases
    forms = STARTS[request.target].forms
    kept = request.journal or request.out.with_name(f"{request.out.name}.journal")
    cases, step = (made, 1) if made else (ground.golden, 2)
    on = Probing(ground.checkpoint.root, ground.recipe, ground.components, cases, step, ground.golden, forms)
    with workers(request.jobs, request.dask) as found:
        with open_journal(kept, _key(ground)) as journal:
            modules = estimated(on, request.directions, found, journal, count)
            modules = refined(modules, request.budget, on, found, journal, count, ground.progress)
        yield modules, lambda point: _rehearse(found, on, point)


def _key(ground: _Ground) -> Key:
    recipe, target = ground.recipe, ground.request.target
    schemes = [recipe.schemes[name] for name in ground.components]
    tools = tools_of(target, family_of(ground.checkpoint.config).form.libraries)
    return Key(
        checkpoint=ground.checkpoint.sha256(),
        target=target,
        components=ground.components,
        forms=tuple(form.label for form in STARTS[target].forms),
        rewrites=recipe.rewrites,
        rounding=", ".join(sorted({f"{one.rounding}{' and biases' * one.bias_correction}" for one in schemes})),
        calibration=sha256_of((ground.cases or ground.golden) / INDEX),
        versions={"md-export": __version__} | tools,
    )


def _rehearse(found: Workers, on: Probing, point: Point) -> Quality:
    recipe = chosen_recipe(on.recipe, point.forms, on.recipe.name)
    (answer,) = [answer.value for answer in spread(rehearse_request, [Rehearsal(on, recipe)], found)]
    return answer


def _rehearsed(budget: Budget, modules: Sequence[Module], rehearse: Rehearse) -> Budget:
    """Return the aim of the smallest choice that meets the budget in torch, or the last aim tried if none does."""
    # A size is no aim.
    if budget.picture_db is None and budget.snr_db is None:
        return budget
    tried = list(tries(budget, budget, _MOST_REHEARSALS, lambda aim: choose(modules, aim), rehearse))
    passed = [one for one in tried if one[2].keeps_to(budget)]
    aim, _, _ = min(passed, key=lambda one: one[1].bytes) if passed else tried[-1]
    return aim


class _Builder:
    """Builds choices, each in a separate folder, until one is accepted."""

    def __init__(self, ground: _Ground, modules: Sequence[Module], folder: Path) -> None:
        self._ground, self._modules, self._folder = ground, modules, folder
        self._request, self._progress = ground.request, ground.progress
        self._built = 0
        # The size of the artifacts without the chosen weights is known after the first build.
        self.base = Base()

    def recipe_of(self, point: Point) -> Recipe:
        """Return the starting recipe with the choice's forms."""
        return chosen_recipe(self._ground.recipe, point.forms, f"{self._request.target}-search")

    def settled(self, aim: Budget) -> tuple[Point, Built]:
        """Choose and build, and correct the aim by the measured quality, until a build meets the budget.

        Raises:
            ParityError: no build met the budget in :data:`_MOST_BUILDS` attempts.
        """
        budget = self._request.budget
        for _ in range(_MOST_BUILDS):
            point = choose(self._modules, aim, self.base)
            built = self._build(point)
            if self._keeps(built):
                return point, built
            aim = next_aim(budget, point, built.quality)
        raise ParityError(f"{_MOST_BUILDS} builds missed {budget.spelled}; the last had {_spelled(built)}")

    def judged(self, command: str, least: float) -> tuple[Point, Built]:
        """Build and return the smallest choice with at least the score ``least``, from choices of rising quality.

        Args:
            command: judge, which prints a score for an export.

        Raises:
            ParityError: the best choice has a lower score.
        """
        points = _rising(self._modules, self._request.budget)
        passed: dict[int, Built] = {}

        def passes(point: Point) -> bool:
            built = self._build(point)
            score = judged(command, built.folder)
            self._progress(f"judged {score:g}: {_spelled(built)}")
            if score >= least and self._keeps(built):
                passed[point.bytes] = built
                return True
            return False

        point = first_passing(points, passes)
        if point is None:
            raise ParityError(f"the judge gives less than {least:g} to the best choice of {_JUDGED_DB[-1]:g} dB, too")
        return point, passed[point.bytes]

    def sealed(self, point: Point, built: Built, out: Path) -> Recipe:
        """Export the build to ``out``, verified with the final thresholds, and return its recipe.

        Raises:
            ParityError: the export is below the quality that was measured before.
        """
        recipe, ground = sealed(self.recipe_of(point), built.quality, self._request.budget), self._ground
        try:
            export(recipe, ground.checkpoint.root, out, ground.given, self._progress, ground.resources)
        except ParityError as error:
            raise ParityError(f"the artifacts do not compute twice the same: {error}") from error
        return recipe

    def _keeps(self, built: Built) -> bool:
        most = self._request.budget.bytes
        return built.quality.keeps_to(self._request.budget) and (most is None or built.bytes <= most)

    def _build(self, point: Point) -> Built:
        self._built += 1
        self._progress(f"build {self._built}: {point.bits:.2f} bits per weight, predicted {point.picture_db:.1f} dB")
        folder, ground = self._folder / f"{self._built}", self._ground
        recipe, checkpoint = self.recipe_of(point), ground.checkpoint.root
        built = build(recipe, checkpoint, folder, ground.given, self._progress, ground.resources)
        self.base = Base(bytes=built.bytes - sum(one.bytes for one in point.chosen))
        return built


def _rising(modules: Sequence[Module], budget: Budget) -> list[Point]:
    points: dict[int, Point] = {}
    for picture_db in _JUDGED_DB:
        try:
            point = choose(modules, dataclasses.replace(budget, picture_db=max(picture_db, budget.picture_db or 0)))
        except UsageError:
            break
        points[point.bytes] = point
    return [points[size] for size in sorted(points)]


def _spelled(built: Built) -> str:
    worst = min(built.quality.snr_db.values())
    picture = "" if built.quality.picture_db is None else f"picture {built.quality.picture_db:.1f} dB, "
    return f"{built.bytes:,} bytes, {picture}worst component {worst:.1f} dB"


def _trade_off(
    budget: Budget, target: str, modules: Sequence[Module], base: Base, point: Point, built: Built
) -> TradeOff:
    measured = Figures(built.bytes, point.bits, built.quality.picture_db, built.quality.snr_db)
    return TradeOff(
        target=target,
        budget=budget.spelled,
        curve=tuple(figures_of(one) for one in curve(modules, base)),
        uniform={form.label: figures_of(uniform(modules, form, base)) for form in STARTS[target].forms},
        chosen=figures_of(point_of(point.modules, point.chosen, base)),
        built={"chosen": measured},
    )
