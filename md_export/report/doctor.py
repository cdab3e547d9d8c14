"""An examination as a table, and as plain text to paste into a bug report."""

from __future__ import annotations

import getpass
import re
from pathlib import Path

from rich.table import Table

from md_export.diagnose.doctor.finding import Diagnosis, Finding
from md_export.report.tables import drawn


def doctor_table(diagnosis: Diagnosis) -> Table:
    """One row for each finding."""
    rows = ((item.area, item.what, item.verdict, item.found, item.advice) for item in diagnosis.findings)
    title = f"md-export {diagnosis.md_export} on {diagnosis.system}"
    return drawn(title, ("area", "what", "verdict", "found", "what to do"), rows)


def doctor_text(diagnosis: Diagnosis, home: Path | None = None, user: str | None = None) -> str:
    """Without names of users or their folders: ``home``, this user's by default, becomes ``~``."""
    lines = [f"md-export {diagnosis.md_export}", diagnosis.system, *map(_line, diagnosis.findings)]
    return without_names("\n".join(lines), home or Path.home(), user or _user())


def without_names(text: str, home: Path, user: str) -> str:
    """Home folders → ``~``; the user's name as part of any other path → ``USER``."""
    for folder in {str(home), str(home.resolve())} - {"/", ""}:
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", "~", text)
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w.-])", "USER", text) if user else text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _line(item: Finding) -> str:
    advice = f" -> {item.advice}" if item.advice else ""
    return f"{item.area:9}{item.what:20}{item.verdict:14}{item.found}{advice}"
