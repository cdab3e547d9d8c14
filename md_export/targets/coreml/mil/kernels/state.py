"""Reading and writing states (iOS18)."""

from __future__ import annotations

from md_export.targets.coreml.mil.bind import Stored, Tensor


def read_state(input: Stored) -> Tensor:
    """A copy of the state."""
    return input.clone()


def write_state(input: Stored, data: Stored) -> Tensor:
    """The new content; the program puts it in place."""
    if input.shape != data.shape:
        raise ValueError(f"a state of shape {list(input.shape)} cannot take {list(data.shape)}")
    return data.clone()
