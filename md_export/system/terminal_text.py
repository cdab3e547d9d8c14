"""Text for a terminal: durations in words, and untrusted text made safe to print.

Untrusted text must not move the cursor or hide words.
"""

from __future__ import annotations

import re
from typing import Any, Final

# Control characters except tab and line feed, marks that change the writing direction, and surrogates that stand for
# bytes that are not UTF-8.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return ``text`` with each control character as an escape: ``\\x1b``."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def first_control(document: Any) -> str | None:
    """Return the first string or key of a JSON-like document with a control character, escaped; None if none has."""
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
