"""Write node data for Google's Model Explorer: figures of an attribution on the operations of the graph.

A file holds one figure in the format of ``node_data_builder.py`` of google-ai-edge/model-explorer: for each graph a
name, the value of each node by its id, and a colour up to each threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from md_export.diagnose.attribution.attribute import Attribution, OpError
from md_export.diagnose.attribution.blame import SOMETHING_ELSE_DB
from md_export.parity.metrics import EXACT_DB

# JSON has neither infinity nor NaN: a value that is not finite is written as the largest.
_LARGEST: Final = float(np.finfo(np.float32).max)
_LARGEST_FLOAT16: Final = 65504.0
_RED, _ORANGE, _YELLOW, _GREEN = "#d6554c", "#e0a33e", "#f3e3a2", "#cfe8d5"
_WHITE, _BLUE = "#ffffff", "#4c8dd6"
_FIGURES: Final[Mapping[str, tuple[str, Callable[[OpError], float | None]]]] = {
    "local_snr_db": ("SNR dB on its own input", lambda op: op.local_snr_db),
    "cumulative_snr_db": ("SNR dB against torch", lambda op: op.cumulative_snr_db),
    "peak": ("largest magnitude", lambda op: op.peak),
    "bytes": ("stored bytes", lambda op: op.bytes or None),
}


def write_node_data(found: Attribution, file: Path) -> tuple[Path, ...]:
    """Write one file per figure beside each other and return them: ``unet.json`` gives ``unet-local_snr_db.json``, ….

    An operation without the figure is left out.
    """
    written = []
    for figure, (title, value) in _FIGURES.items():
        results = {op.node: {"value": _finite(one)} for op in found.ops if (one := value(op)) is not None}
        data = {"name": title, "results": results, **_colours(figure, found.least_snr_db)}
        path = file.with_name(f"{file.stem}-{figure}.json")
        path.write_text(json.dumps({found.graph: data}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        written.append(path)
    return tuple(written)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LARGEST


def _colours(figure: str, least_db: float) -> dict[str, list[dict[str, str | float]]]:
    if figure == "bytes":
        return {"gradient": [{"stop": 0, "bgColor": _WHITE}, {"stop": 1, "bgColor": _BLUE}]}
    edges = (_LARGEST_FLOAT16 / 64, _LARGEST_FLOAT16 / 8, _LARGEST_FLOAT16, _LARGEST)
    colours = (_GREEN, _YELLOW, _ORANGE, _RED)
    if figure != "peak":
        edges, colours = (SOMETHING_ELSE_DB, least_db, least_db + 20.0, EXACT_DB), colours[::-1]
    pairs = zip(sorted(edges), colours, strict=True)
    return {"thresholds": [{"value": value, "bgColor": colour} for value, colour in pairs]}
