"""Globs of a scheme that match nothing: a mistake in the recipe, which no target lets pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from md_export.errors import ConversionError
from md_export.spec.scheme import QuantScheme
from md_export.targets.contract import LoweringJob


def check_module_globs(job: LoweringJob) -> None:
    """Raise :class:`ConversionError` for a glob that matches no module of the component."""
    for field, glob in _strays(job.scheme, [path for path, _ in job.module.named_modules()]):
        raise ConversionError(f"{job.component}: {field} glob {glob!r} matches no module; correct the recipe")


def check_weight_globs(job: LoweringJob, paths: Collection[str]) -> None:
    """Raise :class:`ConversionError` for a glob that matches none of ``paths``, the modules that have a weight."""
    for field, glob in _strays(job.scheme, paths):
        raise ConversionError(
            f"{job.component}: {field} pattern {glob!r} matches no convolution, linear or embedding module"
        )


def _strays(scheme: QuantScheme, paths: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each glob that matches nothing, with its field."""
    ruled = [glob for rule in scheme.rules for glob in rule.modules]
    for field, globs in (("keep_float", scheme.keep_float), ("rules", ruled)):
        for glob in globs:
            if not any(fnmatchcase(path, glob) for path in paths):
                yield field, glob
