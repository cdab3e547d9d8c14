"""THE map: from a checkpoint folder to verified exports. Every command that makes artifacts is a plan for this engine.

    plan       recipes + checkpoint → steps, each with the cache key of all that its result depends on    planning
    look up    the steps whose results the cache lacks                                                    cache
    run        golden cases → calibration cases → artifacts → export, verified                            steps
               each in a process of its own, as many at a time as memory allows, here or on Dask          executors
    place      entries of the cache → the export's folder, whole or not at all                            placing

``md-export coreml|tflite|onnx|coreai`` is a plan with one recipe, ``md-export build`` one with many, and
``md-export search`` one for each try, whose unchanged components come from the cache. Nothing here imports torch: what
has nothing to do says so at once, and memory is the workers' alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from md_export.engine.cache import Cache, Entry
from md_export.engine.executors import executor_of
from md_export.engine.inputs import planned
from md_export.engine.keys import FileHashes
from md_export.engine.placing import Built, Outcome, Placer, Status, check_replaceable, is_placed
from md_export.engine.plan import ExportPlan, ExportResult, Plan, Step
from md_export.engine.request import BuildRequest, Resources
from md_export.engine.scheduler import Failure, Listener, Teller, run_steps
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
    note: Progress | None = None,
) -> tuple[Manifest, Verdict]:
    """Checkpoint → artifacts, each executed by its own runtime and proved against golden outputs.

    ``out`` appears whole or not at all; what fails parity is kept beside it as ``<out>.rejected``.

    Args:
        progress: is told each step as it begins.
        note: is told what is built and what is taken from the cache; by default as ``progress``.

    Raises:
        MdExportError: see :mod:`md_export.errors`; ParityError where an artifact falls short.
    """
    refuse_existing(out)
    with (resources or Resources()).request(recipe, checkpoint_dir, out.parent, golden_dir, out.name) as request:
        plan = planned(request)
        outcome = carry_out(plan, plan.exports, request, Teller(progress, note))
        if outcome.failures:
            raise _error(outcome.failures[0], request)
        result = Cache(request.cache).require(plan.exports[0].key).result
    assert isinstance(result, ExportResult)  # noqa: S101 (the last step of a plan)
    return read_manifest(out), result.verdict


def build(request: BuildRequest, listener: Listener, dry: bool = False) -> Outcome:
    """Bring one export for each recipe into ``request.out``; what is there and right already stays as it is.

    ``dry``: tell the plan, and do nothing.

    Raises:
        MdExportError: nothing could be begun. What fails later is in the outcome.
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
    """Copy the golden cases of a recipe's export to ``folder``, and its calibration cases where it has some.

    Raises:
        MdExportError: as :func:`export`.
    """
    with (resources or Resources()).request(recipe, checkpoint_dir, folder, golden_dir) as request:
        plan = planned(request)
        wanted = [step for step in plan.steps if step.kind in ("golden", "calibration")]
        with executor_of(request, plan) as executor:
            steps, cached = missing(plan, [step.key for step in wanted], executor.cache, progress)
            teller = Teller(progress)
            teller.planned(steps, cached, executor.limits)
            with executor.open(steps) as begin:
                failures = run_steps(steps, begin, executor.limits, teller)
            if failures:
                raise _error(failures[0], request)
            for step in wanted:
                executor.cache.require(step.key)
                shutil.copytree(executor.cache.files(step.key), folder / step.kind, copy_function=shutil.copyfile)
    golden, calibration = folder / "golden" / "golden", folder / "calibration" / "cases"
    return golden, calibration if calibration.exists() else None


def carry_out(
    plan: Plan, due: Iterable[ExportPlan], request: BuildRequest, listener: Listener, dry: bool = False
) -> Outcome:
    """Run the steps that the cache lacks for the exports that are ``due``, and place each as soon as it is proved."""
    due = list(due)
    with executor_of(request, plan) as executor:
        steps, cached = missing(plan, [export.key for export in due], executor.cache, listener.line)
        listener.planned(steps, cached, executor.limits)
        if dry:
            return _outcome(plan, request, {export.name: "planned" for export in due})
        require_space(request.out, sum(export.space for export in due))
        require_space(request.cache, sum(export.space for export in due if plan.step(export.key) in steps))
        with workspace(request.out) as placing, executor.open(steps) as begin:
            placer = Placer(plan, due, request, executor, placing, listener)
            placer.place_cached(steps)
            failures = run_steps(steps, begin, executor.limits, placer)
    return _outcome(plan, request, placer.status, (*failures, *placer.failures))


def missing(
    plan: Plan, wanted: Iterable[str], cache: Cache, tell: Progress
) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Steps whose results the cache lacks, and those that it has, of all that lead to the ``wanted`` keys.

    What a step needs is not looked at where the step itself is there; but an export is copied with all of its parts,
    and one whose part has to be made again is proved again.
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
    """The error of a build with one export."""
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
    """Whether its folder holds what its entry says; hashes are remembered for the next time."""
    entry = Cache(request.cache).read(export.key)
    return entry is not None and is_placed(request.out / export.name, entry, FileHashes(request.cache / "seen"))
