"""Documents that look right and are not: valid ones with some places deleted or replaced by what nobody expects."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

_DEEP: Any = []
for _ in range(300):
    _DEEP = [_DEEP]

# Numbers no type holds, literals that JSON does not have, names that lead outside, shapes of a billion elements.
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    0.5,
    10**30,
    -(2**63) - 1,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "\ud800",
    "\u202e",
    "x" * 5000,
    "float32",
    "NaN",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    [10**9, 10**9, 10**9],
    _DEEP,
)
DELETE = object()


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside a document."""
    if isinstance(document, dict):
        items: Any = document.items()
    else:
        items = enumerate(document) if isinstance(document, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def spoiled(document: Any) -> st.SearchStrategy[Any]:
    """``document`` with one to three places deleted or replaced."""
    edit = st.tuples(st.sampled_from(places(document)), st.sampled_from((*VALUES, DELETE)))
    return st.lists(edit, min_size=1, max_size=3).map(lambda edits: _edited(document, edits))


def _edited(document: Any, edits: list[tuple[tuple[Any, ...], Any]]) -> Any:
    changed = copy.deepcopy(document)
    for path, value in edits:
        holder = changed
        try:
            for key in path[:-1]:
                holder = holder[key]
            if value is DELETE:
                del holder[path[-1]]
            else:
                holder[path[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue  # An edit before this one took the place away.
    return changed


def as_json(document: Any) -> bytes:
    """With ``NaN`` and ``Infinity`` as Python writes them, and lone surrogates escaped."""
    return json.dumps(document).encode()


NOISE = st.binary(max_size=300) | st.text(max_size=200).map(str.encode)
