"""Make verified exports from a checkpoint folder. Every command that makes artifacts runs a plan in this engine.

    plan       recipes + checkpoint → steps, each with a cache key over everything that it depends on     planning
    look up    the steps without a result in the cache                                                    cache
    run        golden cases → calibration cases → artifacts → export, verified                            steps
               each step in a separate process, as many at a time as memory allows, here or on Dask       executors
    place      cache entries → the export's folder, which appears whole or not at all                     placing

``md-export coreml|tflite|onnx|coreai`` runs a plan with one recipe, ``md-export build`` a plan with many, and
``md-export search`` one plan per try, with unchanged components from the cache. This module does not import torch: a
build with nothing to do ends at once, and only workers need memory for models.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from md_export.engine.cache import Cache, Entry
from md_export.engine.executors import executor_of
from md_export.engine.inputs import planned
from md_export.engine.keys import FileHashes
from md_export.engine.placing import Built, Outcome, Placer, Status, check_replaceable, is_placed
from md_export.engine.plan import ExportPlan, ExportResult, Plan, Result, Step
from md_export.engine.request import BuildRequest, Resources
from md_export.engine.running import Listener, Teller, run_steps
from md_export.engine.schedule import Failure
from md_export.errors import ConversionError, ParityError
from md_export.parity.verdict import Verdict
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.recipe import Recipe
from md_export.system.files import refuse_existing, require_space
from md_export.system.workspace import workspace

Progress = Callable[[str], None]


def export(
    recipe: Recipe,
    checkpoint_dir: Path,
    out: Path,
    golden_dir: Path | None = None,
    progress: Progress = print,
    resources: Resources | None = None,
    listener: Listener | None = None,
) -> tuple[Manifest, Verdict]:
    """Export a checkpoint to artifacts, run each in its runtime and verify it against golden outputs.

    ``out`` appears whole or not at all; an export that fails parity is kept beside it as ``<out>.rejected``.

    Args:
        progress: called with what is built, what comes from the cache, and the label of each step when it begins.
        listener: called with all events instead.

    Raises:
        MdExportError: see :mod:`md_export.errors`; ParityError if an artifact is below a threshold.
    """
    refuse_existing(out)
    with (resources or Resources()).request(recipe, checkpoint_dir, out.parent, golden_dir, out.name) as request:
        plan = planned(request)
        outcome = carry_out(plan, plan.exports, request, listener or Teller(progress))
        if outcome.failures:
            raise _error(outcome.failures[0], request)
        result = Cache(request.cache).require(plan.exports[0].key).result
    assert isinstance(result, ExportResult)  # noqa: S101 (the last step of a plan)
    return read_manifest(out), result.verdict


def build(request: BuildRequest, listener: Listener, dry: bool = False) -> Outcome:
    """Build one export per recipe in ``request.out``; exports that are already there and correct stay untouched.

    ``dry``: report the plan to the listener without running it.

    Raises:
        MdExportError: the build could not begin. Later failures are part of the outcome.
    """
    plan = planned(request)
    due = [export for export in plan.exports if not _is_there(export, request)]
    if not due:
        return _outcome(plan, request, {})
    for export in due:
        check_replaceable(request.out / export.name)
    outcome = carry_out(plan, due, request, listener, dry)
    for export in due if not dry else ():
        _is_there(export, request)
    return outcome


def cases(
    recipe: Recipe,
    checkpoint_dir: Path,
    folder: Path,
    golden_dir: Path | None = None,
    progress: Progress = print,
    resources: Resources | None = None,
) -> tuple[Path, Path | None]:
    """Copy the golden cases of a recipe's export to ``folder``, and its calibration cases if it has any.

    Returns the folder of the golden cases and that of the calibration cases, or None for the latter.

    Raises:
        MdExportError: as for :func:`export`.
    """
    wanted = "golden", "calibration"
    with (resources or Resources()).request(recipe, checkpoint_dir, folder, golden_dir) as request:
        pieces(request, folder, wanted, progress)
    golden, calibration = folder / "golden" / "golden", folder / "calibration" / "cases"
    return golden, calibration if calibration.exists() else None


def pieces(
    request: BuildRequest, folder: Path, kinds: Collection[str], progress: Progress = print
) -> tuple[Result, ...]:
    """Copy the files of steps of the given kinds to ``<folder>/<kind>``, and return their results, not verified.

    Raises:
        MdExportError: as for :func:`export`.
    """
    plan = planned(request)
    wanted = [step for step in plan.steps if step.kind in kinds]
    with executor_of(request, plan) as executor:
        steps, cached = missing(plan, [step.key for step in wanted], executor.cache, progress)
        teller = Teller(progress)
        teller.planned(steps, cached, executor.limits)
        with executor.open(steps) as begin:
            failures = run_steps(steps, begin, executor.limits, teller)
        if failures:
            raise _error(failures[0], request)
        for step in wanted:
            target = folder / step.kind
            shutil.copytree(executor.cache.files(step.key), target, copy_function=shutil.copyfile, dirs_exist_ok=True)
        results = (executor.cache.require(step.key).result for step in wanted)
        return tuple(result for result in results if result is not None)


def carry_out(
    plan: Plan, due: Iterable[ExportPlan], request: BuildRequest, listener: Listener, dry: bool = False
) -> Outcome:
    """Run the steps of the ``due`` exports that are not in the cache; place each export as soon as it is verified.

    ``dry``: report the plan to the listener without running it.
    """
    due = list(due)
    for line in plan.advice:
        listener.line(line)
    with executor_of(request, plan) as executor:
        steps, cached = missing(plan, [export.key for export in due], executor.cache, listener.line)
        listener.planned(steps, cached, executor.limits)
        if dry:
            return _outcome(plan, request, {export.name: "planned" for export in due})
        require_space(request.out, sum(export.space for export in due))
        lacking = {step.key for step in steps}
        require_space(request.cache, sum(export.space for export in due if export.key in lacking))
        with workspace(request.out) as placing, executor.open(steps) as begin:
            placer = Placer(plan, due, request, executor, placing, listener)
            placer.place_cached(lacking)
            failures = run_steps(steps, begin, executor.limits, placer)
    return _outcome(plan, request, placer.status, (*failures, *placer.failures))


def missing(
    plan: Plan, wanted: Iterable[str], cache: Cache, tell: Progress
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Return the steps for the ``wanted`` keys without a result in the cache, and those with one.

    If a step's result is cached, the steps that it needs are not looked up. Exports are the exception: an export is
    copied with all of its parts, and if a part has to be made again, the export is verified again.
    """
    looked: dict[str, Entry | None] = {}

    def look(key: str) -> bool:
        if key not in looked:
            looked[key] = cache.get(key, tell)
        step, there = plan.step(key), looked[key] is not None
        if not there or step.kind == "export":
            whole = [look(need) for need in step.needs]
            if there and not all(whole):
                cache.remove(key)
                looked[key] = None
        return looked[key] is not None

    for key in wanted:
        look(key)
    known = [step for step in plan.steps if step.key in looked]
    lacking = tuple(step for step in known if looked[step.key] is None)
    return lacking, tuple(step for step in known if looked[step.key] is not None)


def _error(failure: Failure, request: BuildRequest) -> Exception:
    """Return the exception to raise for a failure in a build with one export."""
    if isinstance(failure.error, ParityError) and failure.step.kind == "export":
        return ParityError(
            f"the export does not compute what the checkpoint computes: {failure.error}. "
            f"{request.out / str(request.only)} was not written; the rejected artifacts are in {request.rejected}"
        )
    return failure.error or ConversionError(f"{failure.step.label}: {failure.reason}")


def _outcome(
    plan: Plan, request: BuildRequest, status: dict[str, Status], failures: tuple[Failure, ...] = ()
) -> Outcome:
    names = [export.name for export in plan.exports]
    return Outcome(tuple(Built(one, request.out / one, status.get(one, "up to date")) for one in names), failures)


def _is_there(export: ExportPlan, request: BuildRequest) -> bool:
    """Return whether the export's folder holds the files of its cache entry; file hashes are stored for reuse."""
    entry = Cache(request.cache).read(export.key)
    return entry is not None and is_placed(request.out / export.name, entry, FileHashes(request.cache / "seen"))
