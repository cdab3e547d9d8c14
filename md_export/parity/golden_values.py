"""The tensors of a golden case as a file, which may be anybody's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from md_export.components.adapter import RESIDUAL
from md_export.errors import GoldenError
from md_export.sampling import Generation
from md_export.tensors import Array

_MOST_RESIDUALS: Final = 32
# Rank of each tensor of a golden case, batch included where it has one.
_RANKS: Final = {
    "input_ids": 2,
    "noise": 4,
    "timestep": 1,
    "encoder_hidden_states": 3,
    "unet_output": 4,
    "latent": 4,
    "image": 4,
    "picture": 3,
    "sample": 4,
    "encoder_image": 4,
    "encoder_latent": 4,
    "around": 4,
    "condition": 4,
    **{f"{RESIDUAL}{level}": 4 for level in range(_MOST_RESIDUALS)},
}


def values_from_bytes(content: bytes, path: Path) -> Generation:
    """Read a golden file's content; ``path`` stands in error messages. Values may be NaN or Inf.

    Raises:
        GoldenError: no safetensors file, or not the tensors of a golden case.
    """
    try:
        arrays = load(content)
        residuals = [arrays.pop(f"{RESIDUAL}{i}") for i in range(_MOST_RESIDUALS) if f"{RESIDUAL}{i}" in arrays]
        values = Generation(**arrays, residuals=tuple(residuals))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise GoldenError(f"{path} does not hold the tensors of a golden case: {error}") from error
    for name, array in arrays_of(values).items():
        dtype = "int32" if name == "input_ids" else "float32"
        if (array.ndim, str(array.dtype)) != (_RANKS[name], dtype) or not array.size:
            raise GoldenError(
                f"{path} does not hold the tensors of a golden case: {name} is {array.dtype}{list(array.shape)}, "
                f"not {dtype} of rank {_RANKS[name]}; make the golden cases again"
            )
    return values


def check_finite(values: Generation, prompt: str) -> None:
    """Raise :class:`GoldenError` where a case holds NaN or Inf."""
    for name, array in arrays_of(values).items():
        if not np.isfinite(array).all():
            raise GoldenError(f"{name} of the golden case {prompt!r} holds NaN or Inf; the checkpoint itself is broken")


def arrays_of(values: Generation) -> dict[str, Array]:
    """All that was computed for a case, by name, as its file holds it."""
    found = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    found |= {f"{RESIDUAL}{i}": value for i, value in enumerate(found.pop("residuals"))}
    return {name: array for name, array in found.items() if array is not None}
