"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "not installed", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: versions, disk, memory, gpu or canary.
        what: a library, a place, a target.
        verdict: ``broken`` needs to be put right; a ``note`` works, but otherwise than where it was tested.
        found: the figure, in words.
        advice: what to do, empty where nothing is to be done.
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
        """What needs to be put right."""
        return tuple(finding for finding in self.findings if finding.verdict == "broken")
