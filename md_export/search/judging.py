"""A score for what was built, by a command of the user's."""

from __future__ import annotations

import math
import shlex
import subprocess
from pathlib import Path

from md_export.errors import RuntimeFault


def judged(command: str, export: Path) -> float:
    """The number on the last line that ``command EXPORT`` prints.

    Raises:
        RuntimeFault: the command cannot be started, fails, or prints no number at the end.
    """
    try:
        ended = subprocess.run([*shlex.split(command), str(export)], capture_output=True, text=True, check=False)
    except (OSError, ValueError) as error:
        raise RuntimeFault(f"--judge {command!r:.80} cannot be started: {error}") from error
    last = (ended.stdout.strip().splitlines() or [""])[-1]
    if ended.returncode:
        why = (ended.stderr.strip().splitlines() or [last])[-1]
        raise RuntimeFault(f"--judge {command!r:.80} ended with status {ended.returncode}: {why}")
    try:
        score = float(last)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise RuntimeFault(f"--judge {command!r:.80}: its last line is {last!r:.60}, not a score")
    return score
