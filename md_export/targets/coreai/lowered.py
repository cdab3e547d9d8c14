"""What :func:`lower` hands to :func:`quantize` and that to :func:`save`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Lowered:
    """A program in memory.

    Attributes:
        program: ``coreai.authoring.AIProgram``; changed in place.
        notes: those of the job.
    """

    program: Any
    notes: Mapping[str, str] = field(default_factory=dict)
