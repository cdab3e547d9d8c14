"""Text for a terminal: durations in words, and text that somebody else wrote.

Nothing in the latter may move the cursor or hide a word.
"""

from __future__ import annotations

import re
from typing import Any, Final

# Controls but for tab and line feed, the marks that turn the direction of what follows, and what stands for a byte that
# is not UTF-8.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with each control character spelled out: ``\\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def first_control(document: Any) -> str | None:
    """Spelling of the first string of a JSON-like document, keys included, that holds a control character."""
    waiting = [document]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str) and _CONTROL.search(item):
            return f"{item!r:.80}"
    return None


def spelled_time(seconds: float) -> str:
    """Format a duration with the precision of an estimate: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
