"""Results of the functions of :mod:`md_export.api`: each prints as tables and is shown as HTML in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from md_export.errors import RuntimeFault
from md_export.spec.artifact import artifact_path
from md_export.spec.manifest import Manifest
from md_export.spec.tensors import Array, TensorSpec
from md_export.spec.tensors import Runner as Opened
from md_export.system.vendors import stderr_dropped

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from rich.table import Table

    from md_export.parity.verdict import Verdict
    from md_export.parity.weights.audit import AuditResult

Details = TypeVar("Details")


class _Shown:
    """Prints as tables, and is shown as HTML in a notebook."""

    def _tables(self) -> Iterable[Table]:
        raise NotImplementedError

    def __str__(self) -> str:
        from md_export.report.tables import tables_as_text

        return tables_as_text(self._tables())

    def _repr_html_(self) -> str:
        from md_export.report.tables import tables_as_html

        return tables_as_html(self._tables())


@dataclass(frozen=True)
class CheckResult(_Shown, Generic[Details]):
    """Result of :func:`verify` or :func:`audit`; prints as tables.

    Attributes:
        passed: whether nothing falls short.
        failures: one line for each thing that falls short, the component's name first.
        details: all figures of each component.
    """

    passed: bool
    failures: tuple[str, ...]
    details: Details
    _draw: Callable[[Details], Iterable[Table]] = field(repr=False, compare=False)

    def _tables(self) -> Iterable[Table]:
        return self._draw(self.details)


@dataclass(frozen=True)
class Export(_Shown):
    """An export folder; prints as a table of its artifacts.

    Attributes:
        path: the folder.
        manifest: contents of its ``manifest.json``: recipe, artifacts, figures of parity, versions of the libraries.
    """

    path: Path
    manifest: Manifest

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components, one artifact for each: ``text_encoder``, ``unet``, ``vae_decoder``, …"""
        return tuple(entry.component for entry in self.manifest.artifacts)

    def runner(self, component: str) -> Runner:
        """Open a component's artifact in the target's runtime, in this process.

        Raises:
            ArtifactError: the export has no such component, or its file is missing.
            MissingExtraError: the runtime is not installed.
            RuntimeFault: the runtime refuses the file.
        """
        from md_export.targets import target_named

        entry = self.manifest.entry_for(component)
        path, target = artifact_path(self.path, entry), target_named(self.manifest.target)
        # LiteRT announces its delegates there.
        with stderr_dropped():
            opened = target.open().load(path)
        return Runner(path, entry.inputs, entry.outputs, opened)

    def _tables(self) -> Iterable[Table]:
        from md_export.report.tables import artifact_table

        return [artifact_table(self.manifest)]


@dataclass(frozen=True)
class Runner(_Shown):
    """An artifact that is loaded in its runtime; prints as a table of its inputs and outputs.

    Attributes:
        path: the artifact.
        inputs, outputs: name, static shape and dtype (``float32`` or ``int32``) of each.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _opened: Opened = field(repr=False)

    def predict(self, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """Run once and return the outputs by name.

        Args:
            inputs: one array-like of numbers for each of :attr:`inputs`, in its shape; cast to its dtype.

        Raises:
            RuntimeFault: an input is missing, unknown, not numeric or of another shape, or the runtime fails.
        """
        dtypes = {spec.name: spec.dtype for spec in self.inputs}
        arrays = {name: _numbers(name, value, dtypes.get(name)) for name, value in inputs.items()}
        return self._opened.run(arrays)

    def _tables(self) -> Iterable[Table]:
        from md_export.report.tables import drawn, spelled_shape

        sides = (("input", self.inputs), ("output", self.outputs))
        rows = [(side, spec.name, spelled_shape(spec.shape), spec.dtype) for side, specs in sides for spec in specs]
        return [drawn(self.path.name, ("", "name", "shape", "dtype"), rows)]


def verdict_tables(verdict: Verdict) -> list[Table]:
    """Return the table of a verdict."""
    from md_export.report.verdicts import parity_table

    return [parity_table(verdict)]


def audit_tables(result: AuditResult) -> list[Table]:
    """Return the tables of an audit: components, and constants without a tensor of the checkpoint."""
    from md_export.report.diagnoses import audit_table, unmatched_table

    return [audit_table(result), unmatched_table(result)]


def _numbers(name: str, value: ArrayLike, dtype: str | None) -> np.ndarray[Any, Any]:
    """Return an input in its dtype; raises RuntimeFault for values that are no numbers, or that the cast changes."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise RuntimeFault(f"input {name}: not an array of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise RuntimeFault(f"input {name}: an array of dtype {array.dtype}; give numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype or array.dtype)
        lost = np.isfinite(array) & ~np.isfinite(cast) if cast.dtype.kind == "f" else cast != array
    if lost.any():
        raise RuntimeFault(f"input {name}: {array[lost].flat[0]} is not a value of {cast.dtype}")
    return cast
