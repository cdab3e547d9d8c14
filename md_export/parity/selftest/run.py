"""Self-test of an export: try every mutation on copies of it in one worker, and see which check notices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from md_export.checkpoint import open_checkpoint
from md_export.models.families import family_named
from md_export.parity.golden.folder import read_golden
from md_export.parity.judge import Execute
from md_export.parity.metrics import Check, Fault
from md_export.parity.pin import pin_findings, seal
from md_export.parity.selftest.answers import Bench, by_name, examine
from md_export.parity.selftest.sandbox import NotApplicable, Sandbox, agree, agree_index, copy_with_cases, link_copy
from md_export.parity.selftest.table import MUTATIONS, Hashes, Mutation
from md_export.parity.weights.audit import audit_component
from md_export.parity.weights.reference import Reference, prepare_reference
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import Manifest, read_manifest
from md_export.system.workspace import scratch_folder

CONTROL: Final = "nothing (control)"
# Two prompts, because some mutations exchange them.
_CASES: Final = 2
# Compares one component of the export in a folder with the checkpoint; returns a fault per stored weight that differs.
Audit = Callable[[Path, str], Sequence[Fault]]
Verdict = Literal["accepted", "rejected", "by accident", "NOT REJECTED", "not applicable"]


@dataclass(frozen=True)
class Row:
    """Result of one mutation.

    Attributes:
        of: kind of thing that was damaged.
        hashes: which recorded hashes were updated to match the damage.
        expected: the check that must notice; None for the control, which must be accepted.
        verdict: ``by accident`` if the expected check did not notice, or if the runtime failed, too.
        caught_by: the checks that noticed, in the order of verification.
        said: message of the expected check, or of the first that noticed; if not applicable, the reason.
        passed: whether verification reacted correctly.
    """

    mutation: str
    of: str
    hashes: str
    component: str
    expected: str
    verdict: Verdict
    caught_by: tuple[str, ...]
    said: str
    passed: bool


def try_all(out: Path, audit: Audit, mutations: Sequence[Mutation] = MUTATIONS) -> Iterator[Row]:
    """Try ``mutations`` in this process, with an undamaged copy as the control before and after."""
    with scratch_folder() as scratch:
        trial = _Trial(scratch, out, audit)
        yield trial.control()
        for mutation in mutations:
            for hashes in mutation.caught:
                yield trial.row(mutation, hashes)
        # Damage to one copy must not have changed the source of the other copies.
        yield trial.control()


class _Trial:
    """An untouched copy of an export, and cached results."""

    def __init__(self, scratch: Path, out: Path, audit: Audit) -> None:
        self._scratch, self._base, self._audit = scratch, scratch / "base", audit
        copy_with_cases(out, self._base, _CASES)
        self._manifest, self._golden = read_manifest(self._base), read_golden(self._base / GOLDEN_FOLDER)
        self._pin = seal(self._base, promise=True)
        self._bench = Bench()

    def control(self) -> Row:
        """Verify the copy itself; it must be accepted."""
        component = self._manifest.artifacts[0].component
        faults = examine(self._base, self._bench.execute, lambda: self._beside(self._base, component))
        said = str(faults[0]) if faults else ""
        verdict: Verdict = "NOT REJECTED" if faults else "accepted"
        return Row(CONTROL, "", "", "", "", verdict, _checks(faults), said, not faults)

    def row(self, mutation: Mutation, hashes: Hashes) -> Row:
        """Try one mutation on a fresh copy."""
        component = _component_for(mutation, self._manifest)
        expected = mutation.caught[hashes]
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            sandbox = Sandbox(Path(folder) / "export", self._manifest, self._golden, component)
            link_copy(self._base, sandbox.folder)
            verdict: Verdict = "not applicable"
            checks: tuple[str, ...] = ()
            try:
                faults = self._faults(sandbox, mutation, hashes)
                verdict, checks = _verdict(expected, faults), _checks(faults)
                said = _said(expected, faults).replace(f"{sandbox.folder}/", "").replace(str(sandbox.folder), "OUT")
            except NotApplicable as reason:
                said = str(reason)
        passed = verdict in ("rejected", "not applicable")
        return Row(mutation.name, mutation.of, str(hashes), component, str(expected), verdict, checks, said, passed)

    def _faults(self, sandbox: Sandbox, mutation: Mutation, hashes: Hashes) -> tuple[Fault, ...]:
        if mutation.audited:
            sandbox.artifact()  # onnx does not read files with several links
        if mutation.damage:
            mutation.damage(sandbox)
        if hashes is Hashes.INDEX:
            agree_index(sandbox.folder)
        elif hashes is Hashes.ALL:
            agree(sandbox.folder)
        file = sandbox.entry.file
        execute: Execute = self._bench.execute
        if mutation.may_crash:
            execute = by_name(file, self._bench.execute_apart, execute)
        if mutation.distortion:
            execute = by_name(file, mutation.distortion(execute), execute)
        audited = sandbox.component if mutation.audited else None
        return examine(sandbox.folder, execute, lambda: self._beside(sandbox.folder, audited))

    def _beside(self, folder: Path, audited: str | None) -> Sequence[Fault]:
        """Compare a copy with the pin and, if a component is ``audited``, with the checkpoint."""
        pinned = [one.fault for one in pin_findings(folder, self._pin)]
        return [*pinned, *(self._audit(folder, audited) if audited else ())]


def _component_for(mutation: Mutation, manifest: Manifest) -> str:
    present = [entry.component for entry in manifest.artifacts]
    candidates = mutation.components(family_named(manifest.family))
    return next(name for name in (*candidates, *present) if name in present)


def _checks(faults: Sequence[Fault]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(fault.check) for fault in faults))


def _said(expected: Check, faults: Sequence[Fault]) -> str:
    lines = [str(fault) for fault in faults if fault.check == expected] or [str(fault) for fault in faults]
    return lines[0] if lines else ""


def _verdict(expected: Check, faults: Sequence[Fault]) -> Verdict:
    """Return the verdict; if the runtime fails although another check was expected, it is an accident."""
    checks = {fault.check for fault in faults}
    if not checks:
        return "NOT REJECTED"
    failed = Check.EXECUTION in checks and expected not in (Check.EXECUTION, Check.BYTES)
    return "by accident" if expected not in checks or failed else "rejected"


@dataclass(frozen=True)
class SelfTest:
    """Result of the mutations of one export."""

    target: str
    recipe: str
    seconds: float
    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each mutation that verification let pass, or that the wrong check noticed."""
        return tuple(_failure(row) for row in self.rows if not row.passed)


def _failure(row: Row) -> str:
    if not row.expected:
        return f"{row.mutation}: {', '.join(row.caught_by)} found: {row.said}"
    where = f"{row.of}, {row.hashes}"
    noticed = f"only {', '.join(row.caught_by)} noticed" if row.caught_by else "nothing noticed"
    return f"{row.mutation} ({where}): {row.expected} should have noticed, {noticed}"


def auditor(checkpoint_dir: Path) -> Audit:
    """Return an audit for this process; it builds the reference of each component only once."""
    checkpoint = open_checkpoint(checkpoint_dir)
    references: dict[str, Reference] = {}

    def audit(out: Path, component: str) -> Sequence[Fault]:
        manifest = read_manifest(out)
        if component not in references:
            references[component] = prepare_reference(checkpoint, manifest.recipe, component, out / GOLDEN_FOLDER)
        found = audit_component(out, manifest, manifest.entry_for(component), references[component]).faults
        return [Fault(Check.AUDIT, line) for line in found]

    return audit
