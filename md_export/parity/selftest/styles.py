"""Damage to the files of styles."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from md_export.parity.selftest.sandbox import NotApplicable, Sandbox, make_own
from md_export.spec.style import style_file
from md_export.spec.tensors import Array, save_tensors


def exchange_factors(sandbox: Sandbox) -> None:
    """Exchange the factors of two layers of the same shape in the file of a style."""
    path, values = _style(sandbox)
    downs = [name for name in sorted(values) if name.endswith("_down")]
    pairs = [(one, other) for one, other in combinations(downs, 2) if values[one].shape == values[other].shape]
    if not pairs:
        raise NotApplicable("its styles change no two layers of the same shape")
    for one, other in pairs:
        values[one], values[other] = values[other], values[one]
    save_tensors(values, path)


def stale_style(sandbox: Sandbox) -> None:
    """Put the style of an earlier training in the file of a style: half as strong."""
    path, values = _style(sandbox)
    for name in (name for name in values if name.endswith("_up")):
        values[name] = (values[name].astype(np.float32) / 2).astype(values[name].dtype)
    save_tensors(values, path)


def _style(sandbox: Sandbox) -> tuple[Path, dict[str, Array]]:
    """Return the file of the first style and its values, after breaking its link to other copies."""
    if not sandbox.manifest.styles:
        raise NotApplicable("it has no styles")
    style = sandbox.manifest.styles[0]
    path = sandbox.folder / style_file(style.name, style.components[-1])
    make_own(path)
    return path, load_file(path)
