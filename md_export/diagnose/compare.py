"""Compare two exports of one target, figure by figure, with the regression budget of the newer recipe.

Both are executed and read again: a manifest alone proves nothing, and manifests contain no pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from md_export.diagnose.lint import lint
from md_export.errors import ArtifactError, RecipeError, UsageError
from md_export.parity.gpu import verify_on_gpu
from md_export.parity.judge import judge
from md_export.parity.metrics import EXACT_DB, first_fault
from md_export.parity.metrics import compare as figures_of
from md_export.parity.verdict import Verification
from md_export.spec.artifact import GOLDEN_FOLDER, artifact_path, bytes_of_artifact
from md_export.spec.manifest import Manifest, read_manifest
from md_export.spec.recipe import Regression
from md_export.spec.tensors import Float32
from md_export.targets import TARGETS
from md_export.targets.contract import Lints
from md_export.targets.lint.report import LintReport

Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Snapshot:
    """Facts about an export by component, read from the artifacts and not from the manifest.

    Attributes:
        bytes: size of the artifact.
        stored: bytes of weights by dtype.
        ops: number of operations by kind.
        lint: number of operations by the rule that advises against them; None if the target has no rules.
        cpu_ops: operations that LiteRT's GPU engine leaves to the CPU; None if it was not run.
    """

    verification: Verification
    bytes: dict[str, int]
    stored: Counts
    ops: Counts
    lint: Counts | None = None
    cpu_ops: dict[str, int] | None = None


def snapshot(
    out: Path, verification: Verification, gpu_limit_s: float | None, progress: Callable[[str], None]
) -> Snapshot:
    """Read the artifacts of a verified export.

    Args:
        out: folder of the export.
        verification: verdict on the export.
        gpu_limit_s: seconds after which each attempt of the GPU engine is stopped; None to leave that engine out.
        progress: called with a line for each step.

    Raises:
        MdExportError: an artifact cannot be read.
    """
    manifest = verification.manifest
    target = TARGETS[manifest.target]
    paths = {entry.component: artifact_path(out, entry) for entry in manifest.artifacts}
    found = {name: target.open().describe(path) for name, path in paths.items()}
    advice = None
    if isinstance(target, Lints):
        progress(f"lint {manifest.recipe.name}")
        advice = {name: _against(*lint(path)) for name, path in paths.items()}
    return Snapshot(
        verification,
        {name: bytes_of_artifact(path) for name, path in paths.items()},
        {name: one.stored for name, one in found.items()},
        {name: one.ops for name, one in found.items()},
        advice,
        None if gpu_limit_s is None else _cpu_ops(out, gpu_limit_s, progress),
    )


def _against(report: LintReport) -> dict[str, int]:
    """Count the operations that each rule advises against; a remark on the whole artifact counts as one."""
    fitting = Counter([*(name for op in report.ops for name in op.rules), *report.remarks])
    return {rule.id: fitting[rule.id] for rule in report.rules if rule.verdict != "likely"}


def _cpu_ops(out: Path, limit_s: float, progress: Callable[[str], None]) -> dict[str, int]:
    """Count the operations left to the CPU by component; all of them if the engine failed."""
    judged = verify_on_gpu(out, None, limit_s, progress)
    runs = {item.component: item.engine for item in judged.components}
    return {name: run.ops if run.resident is None else run.on_cpu for name, run in runs.items()}


Figure = Literal["SNR dB", "PSNR dB", "bytes", "ops", "lint findings", "ops on the CPU"]


@dataclass(frozen=True)
class Change:
    """One figure of a component, or of the picture, in both exports.

    Attributes:
        worse_by: change in the unit of the budget: dB, a share of the old figure, or a count; negative if it improved.
        at_most: the recipe's budget, from the field ``budget``.
        within: whether the change is within the budget.
    """

    component: str
    figure: Figure
    old: float
    new: float
    worse_by: float
    budget: str
    at_most: float
    within: bool

    @property
    def spelled(self) -> tuple[str, str, str, str]:
        """Old figure, new figure, change (``+`` is more) and budget, as text with units."""
        if self.figure in ("SNR dB", "PSNR dB"):
            old, new = ("exact" if value >= EXACT_DB else f"{value:.1f}" for value in (self.old, self.new))
            return old, new, f"{self.new - self.old:+.1f} dB", f"-{self.at_most:g} dB"
        old, new = f"{self.old:,.0f}", f"{self.new:,.0f}"
        if self.budget.endswith("_growth"):
            return old, new, f"{self.worse_by:+.1%}", f"+{self.at_most:.1%}"
        return old, new, f"{self.worse_by:+.0f}", f"+{self.at_most:g}"

    @property
    def fault(self) -> str | None:
        """Error line if the change exceeds the budget, else None."""
        old, new, change, at_most = self.spelled
        line = f"{self.figure} {old} → {new} ({change}), past the recipe's {at_most} ({self.budget})"
        return None if self.within else line


def changes_of(old: Snapshot, new: Snapshot, budget: Regression) -> Iterator[Change]:
    """Yield every figure that both snapshots have, changed or not."""
    first, second = old.verification.result, new.verification.result
    for was, now in zip(first.components, second.components, strict=True):
        name = was.component
        if was.parity and now.parity:
            yield _change(name, "SNR dB", was.parity.snr_db, now.parity.snr_db, "snr_db_loss", budget)
        if name not in old.bytes:  # a component in chunks, judged as a whole
            continue
        yield _change(name, "bytes", old.bytes[name], new.bytes[name], "bytes_growth", budget)
        yield _change(name, "ops", sum(old.ops[name].values()), sum(new.ops[name].values()), "ops_growth", budget)
        if old.lint is not None and new.lint is not None:
            had, has = Counter(old.lint[name]), Counter(new.lint[name])
            # Rule by rule: fewer findings of one rule do not offset more findings of another.
            more = (has - had).total()
            yield _change(name, "lint findings", had.total(), has.total(), "new_lint_findings", budget, more)
        if old.cpu_ops is not None and new.cpu_ops is not None:
            yield _change(name, "ops on the CPU", old.cpu_ops[name], new.cpu_ops[name], "new_cpu_ops", budget)
    pictures = [result.picture.psnr_db for result in (first, second) if result.picture]
    if len(pictures) == 2 and pictures[0] is not None and pictures[1] is not None:
        yield _change("picture", "PSNR dB", pictures[0], pictures[1], "picture_psnr_db_loss", budget)


def _change(
    component: str, figure: Figure, old: float, new: float, field: str, budget: Regression, more: float | None = None
) -> Change:
    """Compare one figure with a field of the budget; ``more`` replaces the difference of two counts."""
    worse = new - old if more is None else more
    if field.endswith("_loss"):
        worse = old - new
    elif field.endswith("_growth"):
        worse = (new - old) / max(old, 1)
    at_most = getattr(budget, field)
    return Change(component, figure, old, new, worse, field, at_most, within=worse <= at_most)


@dataclass(frozen=True)
class Recount:
    """A stored type, kind of operation or lint rule whose count in one component changed."""

    component: str
    what: Literal["stored bytes", "ops", "lint"]
    kind: str
    old: int
    new: int


@dataclass(frozen=True)
class ExportComparison:
    """Differences between two exports.

    Attributes:
        old, new: names of their recipes.
        same_checkpoint: if true, both were judged on the newer one's golden cases, otherwise each on its own.
        changes: every figure, changed or not.
        recounts: changed counts of stored types, operations and lint rules.
        picture_psnr_db: worst PSNR of the new pictures against the old ones, and over how many ``pictures`` of the same
            prompt and seed; None without such pictures.
        faults: verification failures of the new export alone.
    """

    target: str
    old: str
    new: str
    same_checkpoint: bool
    changes: tuple[Change, ...]
    recounts: tuple[Recount, ...]
    picture_psnr_db: float | None
    pictures: int
    faults: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line per figure above its budget and per verification failure, starting with the component's name."""
        return (*self.faults, *(f"{item.component}: {item.fault}" for item in self.changes if item.fault))


def compare_exports(
    old: Path, new: Path, gpu_limit_s: float | None = None, progress: Callable[[str], None] = lambda _: None
) -> ExportComparison:
    """Compare the export in ``new`` with the one in ``old``, within the budget of the new one's recipe.

    Raises:
        UsageError: the exports differ in target or in components.
        RecipeError: the new export's recipe has no ``[regression]``.
        ArtifactError: an export cannot be read, or ``old`` does not pass verification.
        GoldenError: the golden cases of an export are unreadable or altered.
    """
    before, after = read_manifest(old), read_manifest(new)
    budget = _budget(before, after)
    # Judge both exports on the same golden cases if they were made from the same checkpoint.
    golden = new / GOLDEN_FOLDER if before.checkpoint_sha256 == after.checkpoint_sha256 else None
    baseline = judge(old, golden, progress)
    if baseline.result.failures:
        reasons = "; ".join(baseline.result.failures)
        raise ArtifactError(f"{old} fails verification, so it is no baseline: {reasons}; name one that passes")
    first = snapshot(old, baseline, gpu_limit_s, progress)
    second = snapshot(new, judge(new, None, progress), gpu_limit_s, progress)
    return compare_snapshots(first, second, budget)


def _budget(before: Manifest, after: Manifest) -> Regression:
    if before.target != after.target:
        raise UsageError(f"OLD is for {before.target}, NEW for {after.target}; compare two exports of one target")
    if before.recipe.parts != after.recipe.parts:
        names = (", ".join(recipe.parts) for recipe in (before.recipe, after.recipe))
        raise UsageError(f"OLD and NEW differ in components ({' and '.join(names)}); compare exports of the same ones")
    if after.recipe.regression is None:
        raise RecipeError(
            f"recipe {after.recipe.name} of NEW has no [regression] table to compare by; add one and export again"
        )
    return after.recipe.regression


def compare_snapshots(old: Snapshot, new: Snapshot, budget: Regression) -> ExportComparison:
    """Compare two snapshots of the same target and components."""
    before, after = old.verification.manifest, new.verification.manifest
    psnr, count = _picture_against_picture(old.verification, new.verification)
    recounts = (
        *_recounts("stored bytes", old.stored, new.stored),
        *_recounts("ops", old.ops, new.ops),
        *_recounts("lint", old.lint or {}, new.lint or {}),
    )
    return ExportComparison(
        target=after.target,
        old=before.recipe.name,
        new=after.recipe.name,
        same_checkpoint=before.checkpoint_sha256 == after.checkpoint_sha256,
        changes=tuple(changes_of(old, new, budget)),
        recounts=recounts,
        picture_psnr_db=psnr,
        pictures=count,
        faults=new.verification.result.failures,
    )


def _recounts(what: Literal["stored bytes", "ops", "lint"], old: Counts, new: Counts) -> Iterator[Recount]:
    for component, after in new.items():
        before = old[component]
        for kind in sorted({*before, *after}):
            if before.get(kind, 0) != after.get(kind, 0):
                yield Recount(component, what, kind, before.get(kind, 0), after.get(kind, 0))


def _picture_against_picture(old: Verification, new: Verification) -> tuple[float | None, int]:
    """Return the worst PSNR over the cases that both exports have, and the number of these cases."""
    before, after = _pictures(old), _pictures(new)
    shared = [key for key in after if key in before and first_fault(after[key], before[key]) is None]
    if not shared:
        return None, 0
    return min(figures_of(after[key], before[key]).psnr_db for key in shared), len(shared)


def _pictures(verification: Verification) -> dict[tuple[str, int], Float32]:
    # strict=False: a verification has no pictures if its chain failed.
    pairs = zip(verification.golden.cases, verification.pictures, strict=False)
    return {(case.prompt, case.seed): picture for case, picture in pairs}
