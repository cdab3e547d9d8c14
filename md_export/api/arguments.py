"""Arguments of the functions of :mod:`md_export.api`: each wrong value is one error that names it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from md_export.errors import UsageError
from md_export.spec.manifest import first_finding
from md_export.spec.names import Method
from md_export.spec.variant import Chunks, Size, Variant


@dataclass(frozen=True)
class Options:
    """The options that several functions share, checked; their meaning is that of :func:`md_export.export`."""

    loras: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    size: Size | None = None
    timestep: int | None = None
    clip_skip: int = 0
    chunks: Chunks | None = None
    steps: int | None = None
    sampler: Method | None = None
    guidance: float | None = None
    negative: str | None = None

    @classmethod
    def of(cls, **given: Size | Chunks | float | str | Sequence[str] | None) -> Options:
        """Return the options with the ``given`` values; raises UsageError, which names the option, for a wrong one."""
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            raise UsageError(first_finding(error)) from error

    @property
    def variant(self) -> Variant:
        """The variant of the checkpoint, without guidance."""
        return Variant(self.size, self.timestep, self.clip_skip, chunks=self.chunks)


def path_of(path: str | os.PathLike[str]) -> Path:
    """Return a path; raises UsageError for one that no system has."""
    text = os.fspath(path)
    if "\0" in text:
        raise UsageError(f"{text!r:.200} is not a path: it contains a null character")
    return Path(text)
