"""The findings of an examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "not installed", "broken"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        area: versions, disk, memory, gpu or canary.
        what: the library, folder or target that was checked.
        verdict: ``broken`` must be fixed; a ``note`` works, but differs from the tested setup.
        found: the figure, in words.
        advice: what to do; empty where nothing is wrong.
    """

    area: str
    what: str
    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; ``system`` is the operating system, processor and number of cores."""

    md_export: str
    system: str
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings that must be fixed."""
        return tuple(finding for finding in self.findings if finding.verdict == "broken")
